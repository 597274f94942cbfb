"""What is particular to S3: how it is reached, and its errors as sentences.

Endpoint, region, credentials, profiles and the number of attempts come from where every AWS client takes them
(AWS_ENDPOINT_URL, AWS_REGION, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE, AWS_MAX_ATTEMPTS, instance and web
identity roles). Requests that fail for a while are made again by botocore, in its standard mode.
"""

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

import fsspec
from aiohttp import ClientError as TransportError
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from upath import registry
from upath.implementations import cloud

from dd_core.errors import StoreError

_REFUSALS = {"403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
_CHECK_CREDENTIALS = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and what they are allowed to do"


def register() -> None:
    """Let fsspec and universal_pathlib use this module's classes for ``s3://``."""
    fsspec.register_implementation("s3", S3, clobber=True)
    registry.register_implementation("s3", S3Path, clobber=True)


def options() -> dict[str, Any]:
    """What the file system is made with; part of its identity, so that another environment makes another one."""
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")  # botocore reads only the latter
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    retries = {} if os.environ.get("AWS_RETRY_MODE") else {"retries": {"mode": "standard"}}
    return {
        "endpoint_url": endpoint,
        "client_kwargs": {"region_name": region} if region else {},
        "config_kwargs": {"read_timeout": 60, **retries},
        "max_concurrency": 4,  # parts of 50 MiB, all in memory
    }


@contextlib.contextmanager
def _sentences(fs: "S3", action: str, bucket: str, key: str) -> Iterator[None]:
    """Turn every error but "not there" and "already there" into one sentence."""
    where = f"s3://{bucket}/{key}".rstrip("/")
    try:
        yield
    except (OSError, BotoCoreError, ClientError, TransportError, ValueError) as error:
        cause = error if isinstance(error, ClientError) else error.__cause__
        told = cause.response.get("Error", {}) if isinstance(cause, ClientError) else {}
        code, message = str(told.get("Code", "")), str(told.get("Message") or error).splitlines()[0].rstrip(".")
        if code == "NoSuchBucket":
            raise StoreError(f"there is no bucket {bucket}; create it, or correct DD_ROOT") from error
        if isinstance(error, (FileNotFoundError, FileExistsError)):
            raise
        if isinstance(error, (NoCredentialsError, PartialCredentialsError)):
            raise StoreError(
                f"there are no credentials for {where} ({message}); set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, "
                "or AWS_PROFILE"
            ) from error
        if code in _REFUSALS or isinstance(error, PermissionError):
            raise StoreError(
                f"the object store refuses {action} of {where} ({code}: {message}); {_CHECK_CREDENTIALS}"
            ) from error
        if not code and isinstance(error, (ConnectionError, HTTPClientError, TransportError, TimeoutError)):
            raise StoreError(
                f"the object store at {fs.endpoint_url or 'AWS'} does not answer ({message}); check AWS_ENDPOINT_URL "
                "and the network, then run the same command again"
            ) from error
        raise StoreError(
            f"the object store failed at {action} of {where} ({' '.join(filter(None, [code, message]))}); nothing "
            "half-written was left, run the same command again"
        ) from error


class S3(S3FileSystem):
    """s3fs with our sentences; every request goes through ``_call_s3``, and bytes are read in the two others."""

    # Its own, of requests that found no connection and of reads that broke off, beyond those of botocore.
    retries = 3

    async def _call_s3(self, method: str, *arguments: Any, **parameters: Any) -> Any:
        action = method.removesuffix("_object").removesuffix("_v2").replace("_", " ")
        with _sentences(self, action, parameters.get("Bucket", ""), parameters.get("Key", "")):
            return await super()._call_s3(method, *arguments, **parameters)

    call_s3 = sync_wrapper(_call_s3)

    async def _get_file(self, rpath: str, lpath: str, **parameters: Any) -> Any:
        bucket, key, _ = self.split_path(rpath)
        with _sentences(self, "get", bucket, key):
            return await super()._get_file(rpath, lpath, **parameters)

    async def _cat_file(self, path: str, **parameters: Any) -> Any:
        bucket, key, _ = self.split_path(path)
        with _sentences(self, "get", bucket, key):
            return await super()._cat_file(path, **parameters)

    async def _isfile(self, path: str) -> bool:
        # fsspec's own takes any error for "no".
        try:
            return bool((await self._info(path))["type"] == "file")
        except FileNotFoundError:
            return False


class S3Path(cloud.S3Path):
    """A path that removes what a ``pathlib.Path`` would, and no more."""

    __slots__ = ()

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove an object; that it is missing is noticed only where it matters, because that takes a request."""
        if not missing_ok and not self.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self))
        self.fs.rm_file(self.path)

    def rmdir(self, recursive: bool = False) -> None:
        """Do nothing, because a folder without objects does not exist; refuse one with objects, unlike ``UPath``."""
        if not recursive and self.is_dir():
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(self))
        if recursive:
            super().rmdir(recursive=True)
