"""An S3 server on loopback (moto's) behind a proxy that breaks requests as told, and processes that work on it."""

import contextlib
import http.client
import json
import logging
import multiprocessing
import os
import re
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import pytest
import torch
from moto.server import ThreadedMotoServer

from dd_core.store import leases
from dd_core.store.store import Store, write_text
from dd_core.study.study import Arm, Study
from dd_core.training.train import train_arm

BUCKET = "lab"
# Short enough to wait for; the store tells times in whole seconds.
QUICK_LEASE = {"RENEWAL_SECONDS": 0.3, "LEASE_SECONDS": 3.0}


@dataclass(frozen=True)
class Request:
    """What a client asks for."""

    method: str
    key: str
    query: str

    def puts(self, pattern: str) -> bool:
        """Whether it brings bytes of an object whose key matches, at once or a part of them."""
        return self.method == "PUT" and re.search(pattern, self.key) is not None


# What becomes of a request: None, it is answered; 500; "drop": the connection is cut while its body is still coming;
# "lost": it is done, but the connection is cut instead of an answer.
Fault = Callable[[Request], int | str | None]


class S3Server:
    """A bucket ``lab`` on a server of its own.

    Attributes:
        fault: decides what becomes of a request.
        requests: how many there were, by method.
    """

    def __init__(self) -> None:
        """Start it, and its proxy."""
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self.fault: Fault = lambda request: None
        self.requests: Counter[str] = Counter()
        self._moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        self._moto.start()
        self.behind = self._moto.get_host_and_port()
        self._proxy = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_": self}))
        self._proxy.daemon_threads = True
        self._proxy.socket.listen(100)
        self._thread = threading.Thread(target=self._proxy.serve_forever, args=(0.05,))
        self._thread.start()
        self.environment = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._proxy.server_address[1]}",
            "AWS_ACCESS_KEY_ID": "key of the tests",
            "AWS_SECRET_ACCESS_KEY": "secret of the tests",
            "AWS_REGION": "eu-central-1",
            "AWS_MAX_ATTEMPTS": "2",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        }
        self.client.create_bucket(Bucket=BUCKET, CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})

    @property
    def client(self) -> Any:
        """Amazon's own client, past the proxy."""
        host, port = self.behind
        return boto3.client(
            "s3",
            endpoint_url=f"http://{host}:{port}",
            region_name="eu-central-1",
            aws_access_key_id="another",
            aws_secret_access_key="another",
        )

    def keys(self, prefix: str = "") -> list[str]:
        """Of all objects."""
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix)
        return [entry["Key"] for page in pages for entry in page.get("Contents", [])]

    @contextlib.contextmanager
    def failing(self, fault: Fault) -> Iterator[None]:
        """Break requests for a while."""
        self.fault = fault
        try:
            yield
        finally:
            self.fault = lambda request: None

    @contextlib.contextmanager
    def credentials_matter(self) -> Iterator[None]:
        """Nobody has any right for a while."""
        host, port = self.behind

        def allow(count: str) -> None:
            url, kind = f"http://{host}:{port}/moto-api/reset-auth", {"Content-Type": "text/plain"}
            urllib.request.urlopen(urllib.request.Request(url, count.encode(), kind)).close()

        allow("0")
        try:
            yield
        finally:
            allow("inf")

    def stop(self) -> None:
        """End both."""
        self._proxy.shutdown()
        self._thread.join()
        self._proxy.server_close()
        self._moto.stop()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_: S3Server

    def _handle(self) -> None:
        path, _, query = self.path.partition("?")
        request = Request(self.command, path.removeprefix(f"/{BUCKET}/"), query)
        self.server_.requests[self.command] += 1
        length = int(self.headers.get("Content-Length", 0))
        fault = self.server_.fault(request)
        if fault == "drop":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        body = self.rfile.read(length)
        if fault == 500:
            self._answer(500, {}, b"<Error><Code>InternalError</Code><Message>We fail.</Message></Error>")
            return
        connection = http.client.HTTPConnection(*self.server_.behind)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            content = answer.read()
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(answer.status, dict(answer.headers), content)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _handle

    def _answer(self, status: int, headers: dict[str, str], content: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        length = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):  # a client that has been killed
                self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


# Processes

_processes = multiprocessing.get_context("forkserver")


def start(server: S3Server, target: Callable[..., None], *arguments: Any) -> Any:
    """Run a function of this module in a process of its own."""
    process = _processes.Process(target=_prepared, args=({**os.environ, **server.environment}, target, arguments))
    process.start()
    return process


def _prepared(environment: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        quick_leases(patch)
        target(*arguments)


def quick_leases(patch: pytest.MonkeyPatch) -> None:
    """Let locks of the dead be free soon."""
    for name, seconds in QUICK_LEASE.items():
        patch.setattr(leases, name, seconds)


def train(address: str, study: Study, arm: Arm) -> None:
    """Train, with a resume point after every epoch."""
    train_arm(study, arm, Store(address), study.epochs, resume_seconds=0)


def count_up(address: str, times: int) -> None:
    """Read a number and write the next one, under a lock that nobody is taken for dead with."""
    leases.LEASE_SECONDS = 60.0
    store = Store(address)
    for _ in range(times):
        with store.lock("counter"):
            path = store.root / "counter.json"
            number = json.loads(path.read_text()) if path.exists() else 0
            write_text(path, json.dumps(number + 1))


def hold(address: str, name: str) -> None:
    """Take a lock, say so, and hold it until a file appears; then write another one."""
    store = Store(address)
    with store.lock(name):
        write_text(store.root / "held", name)
        while not (store.root / "go-on").exists():
            time.sleep(0.05)
        try:
            write_text(store.root / "after", "written")
        except leases.LeaseLostError as error:
            print(error)
            os._exit(3)
