"""The two answers that do not end at once: watches, and logs that are followed."""

import asyncio
import contextlib
import datetime
import json
import time
from typing import Any

from aiohttp import web

from .containers import Log
from .errors import ApiError, expired
from .faults import Faults
from .selectors import matches_fields, matches_labels
from .store import Change, Key, Object, Store


def is_true(text: str | None) -> bool:
    return (text or "").lower() in ("true", "1")


async def watch(request: web.Request, store: Store, faults: Faults, scope: tuple[str, str, str | None]) -> Any:
    """Changes as JSON lines, from resourceVersion on; an ERROR event with 410 where those are forgotten."""
    group_version, plural, namespace = scope
    version = request.query.get("resourceVersion") or "0"
    if "sendInitialEvents" in request.query:
        message = "sendInitialEvents: Forbidden: forbidden for watch unless the WatchList feature gate is enabled"
        raise ApiError(422, "Invalid", message)
    labels, fields = request.query.get("labelSelector"), request.query.get("fieldSelector")

    def is_wanted(key: Key, obj: Object) -> bool:
        here = key[:2] == (group_version, plural) and namespace in (None, key.namespace)
        return here and matches_labels(labels, obj["metadata"].get("labels")) and matches_fields(fields, obj, plural)

    matches_labels(labels, {})  # a malformed one is refused before the stream begins
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    queue: asyncio.Queue[Change] = asyncio.Queue()
    store.watchers.add(queue)
    known = {key for key, obj in store.objects.items() if is_wanted(key, obj)} if version != "0" else set()
    if version == "0":
        for key, obj in store.objects.items():
            queue.put_nowait(Change(0, "ADDED", key, obj))
    elif int(version) >= store.forgotten:
        for change in store.since(int(version)):
            queue.put_nowait(change)
    try:
        await response.prepare(request)
        if 0 < int(version) < store.forgotten:
            await response.write(_line("ERROR", expired(version, store.forgotten).status()))
            return response
        end, breaks = time.monotonic() + int(request.query.get("timeoutSeconds") or 1800), faults.watch_breaks
        while time.monotonic() < end and faults.watch_breaks == breaks:
            with contextlib.suppress(TimeoutError):
                change = await asyncio.wait_for(queue.get(), 0.1)
                if is_wanted(change.key, change.object):
                    known.add(change.key)
                    await response.write(_line(change.kind, change.object))
                elif change.key in known:  # no longer selected
                    known.discard(change.key)
                    if change.key[:2] == (group_version, plural):
                        await response.write(_line("DELETED", change.object))
    except ConnectionResetError:
        pass
    finally:
        store.watchers.discard(queue)
    return response


def _line(kind: str, obj: Object) -> bytes:
    return json.dumps({"type": kind, "object": obj}).encode() + b"\n"


async def pod_log(request: web.Request, faults: Faults, pod: Object, runs: dict[str, list[Log]]) -> Any:
    """GET pods/x/log: container, previous, follow, timestamps, tailLines, sinceSeconds, sinceTime."""
    query, name = request.query, pod["metadata"]["name"]
    container = _container(pod, query.get("container"))
    logs = runs.get(container) or []
    if is_true(query.get("previous")):
        logs = logs[:-1]
        if not logs:
            message = f'previous terminated container "{container}" in pod "{name}" not found'
            raise ApiError(400, "BadRequest", message)
    if not logs:
        statuses = pod["status"].get("containerStatuses") or []
        states = [s["state"] for s in statuses if s["name"] == container]
        reason = states[0].get("waiting", {}).get("reason", "ContainerCreating") if states else "ContainerCreating"
        raise ApiError(400, "BadRequest", f'container "{container}" in pod "{name}" is waiting to start: {reason}')
    log = logs[-1]
    first = _first_line(log, query)
    with_times = is_true(query.get("timestamps"))
    if not is_true(query.get("follow")):
        body = b"".join(_format(*line, with_times) for line in log.lines[first:])
        return web.Response(body=body, content_type="text/plain")
    response = web.StreamResponse(headers={"Content-Type": "text/plain"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionResetError):
        await _follow(request, response, faults, log, first, with_times)
    return response


async def _follow(
    request: web.Request, response: web.StreamResponse, faults: Faults, log: Log, position: int, with_times: bool
) -> None:
    breaks, broken_since = faults.log_breaks, None
    while True:
        if faults.log_breaks != breaks:
            broken_since = broken_since or time.monotonic()
            pending = log.lines[position : position + 1]
            if pending or time.monotonic() - broken_since > 0.5:
                half = b"".join(_format(*line, with_times) for line in pending)
                await response.write(half[: len(half) // 2])
                await asyncio.sleep(0.05)
                if request.transport is not None:
                    request.transport.abort()
                return
        else:
            while position < len(log.lines):
                position += 1
                await response.write(_format(*log.lines[position - 1], with_times))
        if log.closed and position >= len(log.lines):
            return
        await asyncio.sleep(0.02)


def _container(pod: Object, asked: str | None) -> str:
    names = [c["name"] for c in pod["spec"]["containers"]]
    if asked is None and len(names) > 1:
        message = f"a container name must be specified for pod {pod['metadata']['name']}, choose one of: {names}"
        raise ApiError(400, "BadRequest", message)
    if asked not in (None, *names, *(c["name"] for c in pod["spec"].get("initContainers") or [])):
        raise ApiError(400, "BadRequest", f"container {asked} is not valid for pod {pod['metadata']['name']}")
    return asked or str(names[0])


def _first_line(log: Log, query: Any) -> int:
    since = 0.0
    if query.get("sinceSeconds"):
        since = time.time() - int(query["sinceSeconds"])
    if query.get("sinceTime"):
        since = datetime.datetime.fromisoformat(query["sinceTime"]).timestamp()
    first = next((i for i, (moment, _) in enumerate(log.lines) if moment / 1e9 >= since), len(log.lines))
    tail = query.get("tailLines")
    return first if tail is None else max(first, len(log.lines) - int(tail))


def _format(moment: int, text: bytes, with_time: bool) -> bytes:
    """Nine digits of a second always: clients cut the time off by its length."""
    if not with_time:
        return text + b"\n"
    seconds, nanoseconds = divmod(moment, 10**9)
    stamp = datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{stamp}.{nanoseconds:09d}Z ".encode() + text + b"\n"
