"""What goes wrong with an API server, on demand: refusals, delays, a closed port, broken streams."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from .errors import ApiError

Match = Callable[[str, str], bool]  # of the verb (get, list, watch, create, ...) and the path with its query
_REASONS = {410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}


@dataclass
class _Fault:
    match: Match
    times: float
    status: int | None = None
    retry_after: int = 1
    seconds: float = 0.0
    drop: bool = False


class Dropped(Exception):
    """The connection is to be reset without an answer."""


class Faults:
    """Orders are taken from any thread; they count down as requests meet them."""

    def __init__(self) -> None:
        """No faults."""
        self._faults: list[_Fault] = []
        self.log_breaks = (
            0  # grows with each order to break the log streams: streams compare it with what they began at
        )
        self.watch_breaks = 0
        self.close_port: Callable[[float], None] = lambda seconds: None  # given by the server

    def fail(
        self,
        match: Match = lambda verb, path: True,
        status: int = 500,
        times: float = 1,
        retry_after: int = 1,
    ) -> None:
        """Answer the next ``times`` matching requests with this status; a 429 or 503 names ``retry_after`` seconds."""
        self._faults.append(_Fault(match, times, status=status, retry_after=retry_after))

    def delay(self, match: Match, seconds: float, times: float = 1) -> None:
        """Answer the next matching requests so much later."""
        self._faults.append(_Fault(match, times, seconds=seconds))

    def drop(self, match: Match = lambda verb, path: True, times: float = 1) -> None:
        """Reset the connection of the next matching requests instead of answering; nothing is done for them."""
        self._faults.append(_Fault(match, times, drop=True))

    def refuse_connections(self, seconds: float) -> None:
        """Reset every connection and close the port; the same port opens again after so many seconds."""
        self.close_port(seconds)

    def break_log_streams(self) -> None:
        """Cut every followed log that runs now in the middle of its next line, at the latest in half a second."""
        self.log_breaks += 1

    def break_watches(self) -> None:
        """End every watch that runs now without a word."""
        self.watch_breaks += 1

    def clear(self) -> None:
        """Forget the orders that no request has met."""
        self._faults.clear()

    async def meet(self, verb: str, path: str) -> None:
        """Wait or raise, if a fault waits for this request."""
        for fault in [f for f in self._faults if f.times > 0 and f.match(verb, path)]:
            fault.times -= 1
            if fault.drop:
                raise Dropped
            if fault.status is None:
                await asyncio.sleep(fault.seconds)
                continue
            headers = {"Retry-After": str(fault.retry_after)} if fault.status in (429, 503) else {}
            message = "the simulator was told to fail here"
            raise ApiError(fault.status, _REASONS.get(fault.status, "InternalError"), message, headers=headers)
