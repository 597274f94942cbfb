"""Looking after a Job until every task has ended: news from its pods, and what their ends mean for the tasks.

How a task ended is told by its outcome on the data root; a message that says the same comes sooner, or never. The Job's
end is told by its conditions: its counters are zero for a moment whenever a pod is replaced.
"""

import re
import time
from collections.abc import Generator, Iterator

from dd_assets.compute.elsewhere import News
from dd_assets.compute.kubernetes.api import ApiUnavailableError, Cluster, Object
from dd_assets.compute.kubernetes.attempts import Attempts
from dd_assets.compute.kubernetes.explain import (
    Ending,
    Waiting,
    condition,
    disrupted,
    ending_of,
    has_ended,
    is_ending,
    is_gated,
    phase,
    place_of,
    why_no_pods,
    why_waiting,
)
from dd_assets.compute.kubernetes.logs import EventReader, LogStreams
from dd_assets.compute.kubernetes.manifests import CONTAINER
from dd_assets.compute.kubernetes.verdict import Verdict
from dd_assets.compute.retries import Retries
from dd_core.errors import UserError
from dd_core.events import End, Event
from dd_core.jobs.exit_codes import DEFECTS, NO_JOB_FILE, TASKS_FAILED

_LOG_LINES = 20
# For how long a Job's controller may be busy after its last task, pods of a Job that has failed may take to leave, and
# logs may be read after their end.
_CONTROLLER_SECONDS, _LEAVING_SECONDS, _LOG_SECONDS = 60.0, 5.0, 5.0
# For how long a network file system may keep a client from seeing what others wrote (acdirmax of NFS).
_VISIBLE_SECONDS = 60.0
# A list of many pods is work for the API server: it is asked for less often.
_SECONDS_PER_POD = 0.01
# After so many looks in vain a pod's log is taken to be lost with its node.
_LOG_ATTEMPTS = 3


class Following:
    """One Job that the cluster has."""

    def __init__(
        self,
        cluster: Cluster,
        manifest: Object,
        news: News,
        reader: EventReader,
        retries: Retries,
        is_found: bool,
    ):
        """``manifest`` is the Job as the cluster has it; ``is_found`` if it was there already."""
        self.cluster, self.settings, self.news = cluster, cluster.settings, news
        self._is_found, self._since = is_found, time.time()
        self.name, self.uid = manifest["metadata"]["name"], manifest["metadata"]["uid"]
        self._manifest: Object | None = manifest
        self._reader, self._streams = reader, LogStreams(cluster, reader)
        self._held: list[tuple[float, End]] = []
        self._attempts = Attempts(cluster, manifest, news, retries)
        self._verdict = Verdict(news, self.name)
        self._pods_seen: dict[str, float] = {}
        self._pods_over: set[str] = set()
        self._disrupted: set[str] = set()
        self._out_of_memory: dict[int, set[str]] = {}
        self._why: Waiting | None = None
        self._stuck_since: float | None = None
        self._told: set[str] = set()
        self._silent_since: float | None = None
        self._failures = 0
        self._next_look = 0.0
        # An outcome waits so long for the messages before it.
        self._grace = min(5.0, 3 * self.settings.poll_seconds)

    def events(self) -> Generator[Event, None, None]:
        """Events of the tasks that are wanted, each ending in exactly one event finished or failed.

        Raises:
            UserError: the API server has not answered for as long as the settings allow. The Job goes on.
        """
        if self._is_found and self._manifest:
            since = self._manifest["metadata"].get("creationTimestamp")
            yield self.news.note(f"the Job {self.name} is there already, since {since}; it is followed")
        try:
            over_since: float | None = None
            while True:
                if time.monotonic() >= self._next_look:
                    yield from self._look()
                yield from self._outcomes(self._grace)
                if self._manifest is None or self.is_over:
                    break
                if not self.news.awaited or is_ending(self._manifest):
                    over_since = over_since or time.monotonic()
                    has_failed = condition(self._manifest, "FailureTarget") is not None
                    if time.monotonic() - over_since > (_LEAVING_SECONDS if has_failed else _CONTROLLER_SECONDS):
                        break
                if self._is_stuck_for_too_long():
                    yield from self._give_up()
                    return
                yield from self._messages(self.settings.poll_seconds)
            self._streams.finish(_LOG_SECONDS)
            yield from self._messages(0.0)
            yield from self._outcomes(0.0)
            if self._manifest and condition(self._manifest, "Complete"):
                yield from self._late_outcomes()
            yield from self._verdict.on(self._manifest)
        finally:
            self._streams.stop()

    @property
    def is_over(self) -> bool:
        """Whether nothing of the Job runs any more."""
        return self._manifest is None or has_ended(self._manifest)

    def _messages(self, seconds: float) -> Iterator[Event]:
        """What workers tell within so many seconds."""
        deadline = time.monotonic() + seconds
        while (event := self._reader.event(max(0.0, deadline - time.monotonic()))) is not None:
            yield from self.news.tell(event)

    def _outcomes(self, grace: float) -> Iterator[Event]:
        """Tasks that have ended, once the messages about them had their time to arrive."""
        now = time.monotonic()
        self._held += [(now, end) for end in self.news.outcomes().values()]
        due = [end for since, end in self._held if now - since >= grace]
        self._held = self._held[len(due) :]  # the oldest come first
        for end in due:
            yield from self.news.tell(end)

    def _late_outcomes(self) -> Iterator[Event]:
        """What a Job that went well must have left; a network file system may show it a while later."""
        deadline = time.monotonic() + _VISIBLE_SECONDS
        while self.news.awaited and time.monotonic() < deadline:
            time.sleep(min(1.0, self.settings.poll_seconds))
            yield from self._outcomes(0.0)

    # The Job and its pods

    def _look(self) -> Iterator[Event]:
        """Ask the API server once; polling is its own retry."""
        now = time.monotonic()
        try:
            manifest = self.cluster.job(self.name)
            pods = self.cluster.pods(manifest) if manifest else []
            if manifest and manifest["metadata"]["uid"] != self.uid:
                manifest, pods = None, []  # deleted, and another made in its place
            yield from self._news(manifest, pods)
        except ApiUnavailableError as error:
            self._failures += 1
            if self._silent_since is None:
                self._silent_since = now
                yield self.news.note(f"{error}; the Job {self.name} goes on meanwhile, and is asked for again")
            elif now - self._silent_since > self.settings.api_patience_seconds:
                raise UserError(
                    f"{error}, for {now - self._silent_since:.0f} s now; the Job {self.name} goes on by itself, run "
                    "the same command again to take it up"
                ) from error
            self._next_look = now + self.cluster.pause(self._failures, error)
            return
        if self._silent_since is not None:
            yield self.news.note(f"the Kubernetes API answers again, after {now - self._silent_since:.0f} s")
        pause = max(self.settings.poll_seconds, _SECONDS_PER_POD * len(pods))
        self._silent_since, self._failures, self._next_look = None, 0, now + pause

    def _news(self, manifest: Object | None, pods: list[Object]) -> Iterator[Event]:
        for pod in pods:
            uid = pod["metadata"]["uid"]
            self._pods_seen.setdefault(uid, time.monotonic())
            if phase(pod) != "Pending":
                self._streams.follow(pod)
            if phase(pod) in ("Succeeded", "Failed"):
                self._streams.has_ended(uid)
            yield from self._disruption(pod)
            ending = ending_of(pod)
            if ending and not ending.is_disruption and uid not in self._pods_over:
                yield from self._end(uid, ending)
            if phase(pod) in ("Succeeded", "Failed"):
                self._pods_over.add(uid)
        here = {pod["metadata"]["uid"] for pod in pods}
        for uid in self._pods_seen.keys() - here - self._pods_over:
            self._pods_over.add(uid)
            self._streams.has_ended(uid)
        if manifest and not is_ending(manifest):
            self._attempts.let_begin(pods)
        # Last, so that an interrupted look is made again as a whole.
        self._manifest = manifest
        if manifest and not is_ending(manifest):
            yield from self._waiting(manifest, pods)

    def _disruption(self, pod: Object) -> Iterator[Event]:
        """Say so as soon as it is known: once it has ended, an evicted pod is gone."""
        uid, ending = pod["metadata"]["uid"], disrupted(pod)
        if ending and uid not in self._disrupted:
            self._disrupted.add(uid)
            self._verdict.add(ending, [])
            yield from self._tell(ending)

    def _tell(self, ending: Ending, otherwise: str = "") -> Iterator[Event]:
        """Say how an attempt ended; of a Job that was found not what had ended before."""
        text = self._attempts.describe(ending, otherwise)
        if not (self._is_found and ending.at is not None and ending.at + 1 < self._since):
            yield self._note(text, ending.place)

    def _end(self, uid: str, ending: Ending) -> Iterator[Event]:
        """Draw the consequences of a pod that failed."""
        lines: list[str] = []
        if ending.exit_code != TASKS_FAILED:
            try:
                lines = self.cluster.log_tail(ending.pod, CONTAINER, _LOG_LINES)
            except ApiUnavailableError:
                if self._failures < _LOG_ATTEMPTS:
                    raise
        self._verdict.add(ending, lines)
        if ending.is_out_of_memory:
            seen = self._out_of_memory.setdefault(ending.place, set())
            seen.add(uid)
            # By count, so that an orchestrator that was started again does not take the same end for another.
            if self.news.folder.halvings(ending.place) < len(seen):
                self.news.folder.halve(ending.place)
            yield from self._tell(ending, ", taking half as much at once")
        elif ending.exit_code not in (*DEFECTS, TASKS_FAILED, NO_JOB_FILE):
            yield from self._tell(ending)

    # Waiting

    def _waiting(self, manifest: Object, pods: list[Object]) -> Iterator[Event]:
        """Say why pods do not run, once per reason; remember since when none does."""
        now = time.monotonic()
        settled = now - 2 * self.settings.poll_seconds
        waiting = [pod for pod in pods if phase(pod) == "Pending" and not is_gated(pod)]
        idle = [pod for pod in waiting if self._pods_seen[pod["metadata"]["uid"]] <= settled]
        why = self._reason(manifest, pods, idle)
        if why is None or any(phase(pod) in ("Running", "Succeeded") for pod in pods):
            self._stuck_since = None
            self._told = set() if why is None else self._told
        elif self._stuck_since is None:
            self._stuck_since = now
        self._why = why
        # Numbers in a reason (seconds until the next attempt, nodes) are no news, nor is what comes back.
        if why and (kind := re.sub(r"\d+", "#", why.reason)) not in self._told:
            self._told.add(kind)
            who = f"{len(idle)} of {self._places} pods: each" if idle else f"the Job {self.name}"
            yield self._note(f"{who} {why.reason}", place_of(idle[0]) if idle else 0)

    @property
    def _places(self) -> int:
        return len(self.news.job.places)

    def _reason(self, manifest: Object, pods: list[Object], idle: list[Object]) -> Waiting | None:
        if not pods:
            return why_no_pods(manifest, [] if manifest["spec"].get("suspend") else self.cluster.events(self.name))
        if not idle:
            return None
        at_first_sight = [(pod, why_waiting(pod, [])) for pod in idle]
        faulty = [pod for pod, why in at_first_sight if why and why.is_fault]
        chosen = (faulty or idle)[0]
        return why_waiting(chosen, self.cluster.events(chosen["metadata"]["name"]))

    def _is_stuck_for_too_long(self) -> bool:
        if self._stuck_since is None or self._why is None:
            return False
        patience = (
            self.settings.faulty_patience_seconds if self._why.is_fault else self.settings.pending_patience_seconds
        )
        return patience is not None and time.monotonic() - self._stuck_since > patience

    def _give_up(self) -> Iterator[Event]:
        """End a Job that does not begin."""
        assert self._why is not None and self._stuck_since is not None
        self.cluster.patiently(lambda: self.cluster.delete_job(self.name))
        waited = time.monotonic() - self._stuck_since
        text = f"no pod of it has begun: each {self._why.reason}; given up after {waited:.0f} s, and the Job is deleted"
        yield from self.news.give_up(self.news.left, text)

    def _note(self, text: str, place: int = 0) -> Event:
        numbers = self.news.job.places[place] if place < self._places else ()
        return self.news.note(text, numbers[0] if numbers else 0)
