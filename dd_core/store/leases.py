"""Locks on an object store: leases that their holder renews, and that others take over when it no longer does.

A lock is a folder of numbered objects, ``locks/<name>.lock/00000007``, of which the highest counts. It tells who holds
it or that it is free. To take the lock is to create the next number, which the store lets only one do (a conditional
put, ``If-None-Match: *``); nobody but who created a number writes it again, to renew or free it. So nothing depends on
clocks but the age of a lease, which is told by the store's own clock.

A holder that could not renew for a while, because the process was stopped or the network was gone, asks whether the
lock is still its own before anything is put (``check_held``).
"""

import contextlib
import json
import os
import random
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from dd_core.errors import StoreError

RENEWAL_SECONDS = 15.0
# A lease that has not been renewed for so long belongs to a process that is dead, or will find that it has lost it.
LEASE_SECONDS = 60.0


class LockedError(StoreError):
    """Another process holds the lock, and was not to be waited for."""


class LeaseLostError(StoreError):
    """This process was taken for dead, and another one holds its lock."""


def _now() -> float:
    """Seconds on a clock that goes on while the machine sleeps, where there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """One lock; not to be used again once it is free."""

    def __init__(self, folder: Any):
        """``folder``: of the lock, on an object store; touches nothing."""
        self._folder, self._fs = folder, folder.fs
        self._owner = f"{socket.gethostname()} process {os.getpid()} {uuid.uuid4().hex[:12]}"
        self._number = 0
        self._renewed = 0.0
        self._is_lost = False
        self._mutex = threading.Lock()
        self._ended = threading.Event()
        self._clock: tuple[float, float] | None = None
        self.process = os.getpid()

    @contextlib.contextmanager
    def held(self, timeout: float | None) -> Iterator[None]:
        """Wait for the lock, at most ``timeout`` seconds, and keep it until the end.

        Raises:
            LockedError: it was not free in time.
            StoreError: the store does not answer.
        """
        deadline = None if timeout is None else _now() + timeout
        while not self._take():
            if deadline is not None and _now() >= deadline:
                raise LockedError(f"{self._folder} is held by another process")
            time.sleep(random.uniform(0.1, 0.3) * RENEWAL_SECONDS)
        _held.add(self)
        threading.Thread(target=self._keep, daemon=True, name="lease").start()
        try:
            yield
        finally:
            _held.discard(self)
            self._free()

    def check(self) -> None:
        """Make sure that the lock is still ours; asks the store only if it has not been renewed lately.

        Raises:
            LeaseLostError: it is another's.
            StoreError: the store does not answer.
        """
        if self._is_lost or _now() - self._renewed > 2 * RENEWAL_SECONDS:
            self._renew()

    def _object(self, number: int) -> str:
        return f"{self._folder.path}/{number:08d}"

    def _content(self, is_held: bool) -> bytes:
        return json.dumps({"owner": self._owner, "held": is_held}).encode()

    def _numbers(self) -> list[int]:
        names = (name.rpartition("/")[2] for name in self._fs.find(self._folder.path))
        # s3fs names the folder itself if the first object comes into being while it is listed.
        return sorted(int(name) for name in names if name.isdigit())

    def _take(self) -> bool:
        """Try once."""
        started = _now()
        numbers = self._numbers()
        newest = numbers[-1] if numbers else 0
        if newest and self._is_taken(newest):
            return False
        try:
            self._fs.pipe_file(self._object(newest + 1), self._content(True), mode="create")
        except FileExistsError:
            # By another process, or by this one if the answer to a first request was lost.
            if self._read(newest + 1).get("owner") != self._owner:
                return False
        if max(self._numbers(), default=0) > newest + 1:
            # We were so slow that others have had this number, and removed it after taking the next.
            self._fs.rm_file(self._object(newest + 1))
            return False
        self._number, self._renewed = newest + 1, started
        for number in numbers:
            with contextlib.suppress(FileNotFoundError):
                self._fs.rm_file(self._object(number))
        return True

    def _is_taken(self, number: int) -> bool:
        """Whether somebody holds the lock by that number, and has renewed it in time."""
        content = self._read(number)
        if content.get("held") is False:
            return False
        try:
            modified = self._fs.modified(self._object(number)).timestamp()
        except FileNotFoundError:  # the next number is there by now
            return True
        return self._store_time() - modified < LEASE_SECONDS

    def _store_time(self) -> float:
        """Seconds since the epoch by the clock of the store, or a little less."""
        if self._clock is None:
            probe = f"{self._folder.parent.path}/.clock-{uuid.uuid4().hex}"
            self._fs.pipe_file(probe, b"")
            self._clock = self._fs.modified(probe).timestamp(), _now()
            self._fs.rm_file(probe)
        then, at = self._clock
        return then + _now() - at

    def _read(self, number: int) -> dict[str, Any]:
        try:
            content = json.loads(self._fs.cat_file(self._object(number)))
        except (FileNotFoundError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _keep(self) -> None:
        """Renew until the end; what goes wrong in between is noticed by ``check``."""
        while not self._ended.wait(RENEWAL_SECONDS) and not self._is_lost:
            with contextlib.suppress(Exception):
                self._renew()

    def _renew(self) -> None:
        with self._mutex:
            started = _now()
            self._is_lost = self._is_lost or max(self._numbers(), default=0) > self._number
            if self._is_lost:
                raise LeaseLostError(
                    f"this process lost {self._folder}: it had not been heard of for {LEASE_SECONDS:.0f} seconds, and "
                    "another process went on in its place; what it had finished is kept"
                )
            if not self._ended.is_set():
                self._fs.pipe_file(self._object(self._number), self._content(True))
                self._renewed = started

    def _free(self) -> None:
        with self._mutex:
            self._ended.set()
            # A store that does not answer now will take the lease for dead in a while.
            with contextlib.suppress(StoreError, OSError):
                if not self._is_lost:
                    self._fs.pipe_file(self._object(self._number), self._content(False))


_held: set[Lease] = set()


def check_held() -> None:
    """Make sure of every lock that this process holds; to be called before something is put.

    Raises:
        LeaseLostError: one is another's by now.
        StoreError: the store does not answer.
    """
    for lease in tuple(_held):
        if lease.process == os.getpid():
            lease.check()
