"""Events out of pods' logs, as they come: Pipes messages between the lines that people read.

Each pod's log is followed by a thread of its own that connects again whenever the stream breaks. All this is news only:
whatever gets lost here is known from the outcomes on the data root a little later.
"""

import contextlib
import json
import queue
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from dagster import PipesMessageHandler, PipesMessageReader
from dagster_k8s.pipes import _process_log_stream
from dagster_pipes import PIPES_PROTOCOL_VERSION_FIELD, PipesDefaultMessageWriter, PipesParams
from kubernetes.client.exceptions import ApiException

from dd_assets.compute.kubernetes.api import Cluster
from dd_assets.compute.kubernetes.explain import place_of
from dd_assets.compute.kubernetes.manifests import CONTAINER
from dd_core.events import Event, event_from

# Reading again begins earlier than where it broke off, since clocks differ; what was read already is recognised.
_OVERLAP_SECONDS = 300
# A silent stream may be a dead one.
_SILENCE_SECONDS = 600.0
_PAUSE_SECONDS = 1.0


class EventReader(PipesMessageReader):
    """Reads what several pods, each perhaps several times, tell one session of Dagster's.

    Dagster's own reader is for one pod, and its handler keeps every custom message for ever: here they are handed on.
    """

    def __init__(self) -> None:
        """Nothing has been read."""
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._handler: PipesMessageHandler | None = None

    @contextlib.contextmanager
    def read_messages(self, handler: PipesMessageHandler) -> Iterator[PipesParams]:
        """Tell workers to write messages to stderr, which is part of the pod's log."""
        self._handler = handler
        try:
            yield {PipesDefaultMessageWriter.STDIO_KEY: PipesDefaultMessageWriter.STDERR}
        finally:
            if handler.received_opened_message:
                handler.handle_message({"method": "closed", "params": {}})  # type: ignore[typeddict-item]
            self._handler = None

    @property
    def expected_writer_count(self) -> int:
        """To Dagster all pods together are one."""
        return 1

    def no_messages_debug_text(self) -> str:
        """For Dagster's warning."""
        return "Events were looked for in the logs of the pods; results do not depend on them."

    def take(self, place: int, line: str) -> None:
        """Sort one line of a log: messages become events, the rest goes to the step's own stdout."""
        try:
            message = json.loads(line) if line.startswith("{") else None
        except ValueError:
            message = None
        if isinstance(message, dict) and PIPES_PROTOCOL_VERSION_FIELD in message:
            self.messages.put(message)
        else:
            sys.stdout.write(f"[{place}] {line}\n")

    def event(self, timeout: float) -> Event | None:
        """The next event of a worker, waiting for it no longer than so many seconds."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                message = self.messages.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return None
            params = message.get("params") or {}
            if message.get("method") == "report_custom_message":
                if (event := event_from(params.get("payload"))) is not None:
                    return event
            elif message.get("method") == "log" or (message.get("method") == "opened" and not self._is_open()):
                assert self._handler is not None
                self._handler.handle_message(message)  # type: ignore[arg-type]

    def _is_open(self) -> bool:
        return self._handler is not None and self._handler.received_opened_message


class LogStreams:
    """The logs that are being followed."""

    def __init__(self, cluster: Cluster, reader: EventReader):
        """None yet."""
        self._cluster, self._reader = cluster, reader
        self._threads: dict[str, threading.Thread] = {}
        self._ended: set[str] = set()
        self._stopped = threading.Event()
        self._open: dict[str, Any] = {}

    def follow(self, pod: dict[str, Any]) -> None:
        """Read the log of a pod that runs or has run, unless that is done already or too many are being read."""
        uid = pod["metadata"]["uid"]
        if uid in self._threads:
            return
        alive = sum(thread.is_alive() for thread in self._threads.values())
        if alive < self._cluster.settings.max_log_streams:
            arguments = (uid, pod["metadata"]["name"], place_of(pod))
            thread = threading.Thread(target=self._read, args=arguments, daemon=True, name=f"log of {arguments[1]}")
            self._threads[uid] = thread
            thread.start()

    def has_ended(self, uid: str) -> None:
        """Nothing more will be written by this pod; its log is read to the end."""
        self._ended.add(uid)

    def finish(self, seconds: float) -> None:
        """Wait for the logs of pods that have ended, then stop."""
        deadline = time.monotonic() + seconds
        for uid, thread in self._threads.items():
            if uid in self._ended:
                thread.join(max(0.0, deadline - time.monotonic()))
        self.stop()

    def stop(self) -> None:
        """Read no more."""
        self._stopped.set()
        for response in list(self._open.values()):
            with contextlib.suppress(Exception):
                response.shutdown()

    def _read(self, uid: str, name: str, place: int) -> None:
        api = self._cluster.another()
        last = ""
        with contextlib.closing(api.api_client):
            while not self._stopped.is_set():
                was_over = uid in self._ended
                try:
                    for timestamp, line in self._stream(api, uid, name, last):
                        if timestamp > last:
                            last = timestamp
                            for part in line.splitlines():
                                self._reader.take(place, part)
                    if was_over:
                        return
                except ApiException as error:
                    if error.status == 404 or (was_over and error.status == 400):
                        return
                except Exception:  # a stream can break in many ways, and none of them matters
                    if self._stopped.is_set():
                        return
                self._stopped.wait(min(_PAUSE_SECONDS, self._cluster.settings.poll_seconds))

    def _stream(self, api: Any, uid: str, name: str, last: str) -> Iterator[tuple[str, str]]:
        """Lines with their timestamps, from a little before the last one known."""
        age = time.time() - datetime.fromisoformat(f"{last[:19]}+00:00").timestamp() if last else 0.0
        response = api.read_namespaced_pod_log(
            name,
            self._cluster.namespace,
            container=CONTAINER,
            follow=True,
            timestamps=True,
            **({"since_seconds": int(max(0.0, age)) + _OVERLAP_SECONDS} if last else {}),
            _preload_content=False,
            _request_timeout=(10.0, _SILENCE_SECONDS),
        )
        self._open[uid] = response
        try:
            for item in _process_log_stream(response):
                yield item.timestamp, item.log
        finally:
            del self._open[uid]
            with contextlib.suppress(Exception):
                response.close()
