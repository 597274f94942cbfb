"""Dagster's records in a real PostgreSQL, as on a cluster, where SQLite files on a shared disk would be torn apart."""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from support import TINY, Lab

SHORT = (
    TINY.replace("epochs: 24", "epochs: 2").replace("[0, 8, 16, 24]", "[0, 2]").replace("widths: [1, 2]", "widths: [1]")
)
# With a bare postgresql:// SQLAlchemy 2.1 takes another driver, which dagster-postgres does not speak.
STORAGE = """\
storage:
  postgres:
    postgres_db:
      scheme: postgresql+psycopg2
      hostname: 127.0.0.1
      port: {port}
      username: postgres
      password: ""
      db_name: postgres
telemetry: {{enabled: false}}
"""


def _programs() -> Path | None:
    """The folder of the newest server that is installed."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if found := shutil.which("initdb"):
        return Path(found).parent
    return folders[-1].parent if folders else None


def _as_server(*command: str) -> None:
    """Run as somebody who may run the server: it refuses root."""
    user = "postgres" if os.geteuid() == 0 else None
    subprocess.run(command, user=user, cwd="/", check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """Of a server with an empty database."""
    programs = _programs()
    if programs is None:
        pytest.skip("needs the server of PostgreSQL (apt-get install postgresql)")
    # Not below pytest's folder, into which only its owner may look.
    with tempfile.TemporaryDirectory(prefix="dd-postgres-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        _as_server(f"{programs}/initdb", "-D", f"{folder}/data", "-U", "postgres", "-A", "trust", "--no-sync")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            free = int(probe.getsockname()[1])
        options = f"-p {free} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
        _as_server(f"{programs}/pg_ctl", "-D", f"{folder}/data", "-w", "-l", f"{folder}/log", "-o", options, "start")
        stack.callback(_as_server, f"{programs}/pg_ctl", "-D", f"{folder}/data", "-w", "-m", "immediate", "stop")
        yield free


@pytest.fixture
def lab(port: int, tmp_path: Path) -> Lab:
    """Its Dagster keeps records in PostgreSQL."""
    lab = Lab(tmp_path / "lab", SHORT)
    lab.home.mkdir()
    (lab.home / "dagster.yaml").write_text(STORAGE.format(port=port), encoding="utf-8")
    return lab


def rows(port: int, query: str) -> list[tuple[object, ...]]:
    """What the database answers."""
    import psycopg2

    with (
        contextlib.closing(psycopg2.connect(host="127.0.0.1", port=port, user="postgres")) as connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(query)
        return list(cursor.fetchall())


def test_partitions_are_recorded_in_postgresql_and_nowhere_else(lab: Lab, port: int) -> None:
    lab.materialize("tiny/checkpoints", "--partition-range", "plain.k001|0000...plain.k001|0002").succeeded()
    lab.materialize("curvature").succeeded()
    materialised = rows(
        port,
        "SELECT asset_key, partition FROM event_logs WHERE dagster_event_type = 'ASSET_MATERIALIZATION' "
        "AND partition IS NOT NULL ORDER BY asset_key, partition",
    )
    assert materialised == [
        (f'["tiny", "{asset}"]', f"plain.k001|{epoch}")
        for asset in ("checkpoints", "per_image_curvature")
        for epoch in ("0000", "0002")
    ]
    assert rows(port, "SELECT status FROM runs") == [("SUCCESS",), ("SUCCESS",)]
    assert list(lab.folder.rglob("*.db")) == []
    with lab.instance() as instance:
        assert type(instance.run_storage).__module__.startswith("dagster_postgres")
        assert instance.get_materialized_partitions(dg.AssetKey(["tiny", "checkpoints"])) == {
            "plain.k001|0000",
            "plain.k001|0002",
        }
