"""DuckDB on an object store: S3 through its extension httpfs, others through fsspec.

The extension comes with the wheel duckdb-extension-httpfs, so nothing is downloaded. Credentials are handed over as a
temporary secret, which lives in the connection's memory and is in no file.
"""

from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import duckdb

from dd_core.errors import StoreError
from dd_core.store.files import is_object


def give_access(connection: duckdb.DuckDBPyConnection, root: Path) -> None:
    """Let a connection read below a data root.

    Raises:
        StoreError: the extension is not installed for this version of DuckDB.
    """
    if not is_object(root):
        return
    place: Any = root
    if place.protocol != "s3":
        connection.register_filesystem(place.fs)
        return
    connection.execute(f"LOAD {quoted(str(httpfs()))}")
    settings = ", ".join(f"{name} {value}" for name, value in _secret(place).items())
    connection.execute(f"CREATE OR REPLACE TEMPORARY SECRET data_root ({settings})")


def httpfs() -> Path:
    """The extension's file.

    Raises:
        StoreError: it is not installed for this version of DuckDB.
    """
    try:
        folder = Path(str(resources.files("duckdb_extension_httpfs")))
    except ModuleNotFoundError:
        folder = Path()
    path = folder / "extensions" / f"v{duckdb.__version__}" / "httpfs.duckdb_extension"
    if not path.is_file():
        raise StoreError(
            "DuckDB cannot read s3:// without its extension httpfs: pip install "
            f"duckdb-extension-httpfs=={duckdb.__version__}"
        )
    return path


def _secret(root: Any) -> dict[str, str]:
    """What the file system of ``root`` knows, in DuckDB's words."""
    import botocore.session

    client = root.fs.connect()
    credentials = botocore.session.Session().get_credentials()
    endpoint = urlsplit(client.meta.endpoint_url)
    settings = {"TYPE": "s3", "SCOPE": quoted(f"s3://{root.path}")}
    if client.meta.region_name and client.meta.region_name != "aws-global":
        settings["REGION"] = quoted(client.meta.region_name)
    if root.fs.endpoint_url:  # not Amazon's own, which has a host for every bucket
        settings |= {"ENDPOINT": quoted(endpoint.netloc + endpoint.path.rstrip("/")), "URL_STYLE": "'path'"}
        settings["USE_SSL"] = str(endpoint.scheme == "https").lower()
    if credentials:
        frozen = credentials.get_frozen_credentials()
        settings |= {"KEY_ID": quoted(frozen.access_key), "SECRET": quoted(frozen.secret_key)}
        if frozen.token:
            settings["SESSION_TOKEN"] = quoted(frozen.token)
    return settings


def quoted(text: str) -> str:
    """A string literal of SQL."""
    return "'" + text.replace("'", "''") + "'"
