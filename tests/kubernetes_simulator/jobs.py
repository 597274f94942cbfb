"""The Job controller: Indexed and plain Jobs, back-off per index, podFailurePolicy, conditions, time to live.

Follows pkg/controller/job of Kubernetes 1.33 as far as a client can see it. Left out: successPolicy, managedBy, elastic
resizing, the quota on pods created at once, and uncountedTerminatedPods (accounting is done in one step).
"""

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .deletion import Deletion
from .job_pods import TRACKING, create_pod, index_of, matching_rule
from .store import TERMINAL_PHASES, Object, Store, condition, key_of, now, set_condition


@dataclass
class _Record:
    """What the controller counted of one Job. Index None is that of a Job without indexes."""

    started: float | None = None
    finished: float | None = None
    num_failed_pods: int = 0
    num_succeeded_pods: int = 0
    num_counted_failures: int = 0
    failures: Counter[int | None] = field(default_factory=Counter)  # that count against the limit of the index
    attempts: Counter[int | None] = field(default_factory=Counter)  # that also hold back the next pod: with ignored
    last_failure: dict[int | None, float] = field(default_factory=dict)
    succeeded: set[int] = field(default_factory=set)
    failed: set[int] = field(default_factory=set)
    verdict: tuple[str, str] | None = None  # why it failed: reason and message


class JobController:
    """Reconciles every Job with its pods; ``backoff`` is the delay in seconds after the first failure, doubling."""

    def __init__(self, store: Store, deletion: Deletion, backoff: float):
        """What was counted of each Job is kept here, not in its status: no restart of a controller is simulated."""
        self._store, self._deletion, self._backoff = store, deletion, backoff
        self._records: dict[str, _Record] = {}

    def reconcile_all(self) -> None:
        """One round over all Jobs."""
        for job in self._store.select("batch/v1", "jobs"):
            self._reconcile(job)
        uids = {job["metadata"]["uid"] for job in self._store.select("batch/v1", "jobs")}
        for pod in self._store.pods():  # whose Job is gone: nobody else would let go of them
            owners = {reference["uid"] for reference in pod["metadata"].get("ownerReferences") or []}
            if TRACKING in (pod["metadata"].get("finalizers") or []) and not owners & uids:
                self._deletion.drop_finalizer(key_of(pod), TRACKING)

    def _reconcile(self, job: Object) -> None:
        key, spec, uid = key_of(job), job["spec"], job["metadata"]["uid"]
        record = self._records.setdefault(uid, _Record())
        if record.finished is not None:
            ttl = spec.get("ttlSecondsAfterFinished")
            if ttl is not None and time.time() - record.finished >= ttl:
                self._deletion.delete(key, "Background")
            return
        pods = [p for p in self._store.pods(key.namespace) if _is_owned(p, uid)]
        for pod in pods:
            self._account(job, record, pod)
        alive = [p for p in pods if p["status"].get("phase") not in TERMINAL_PHASES]
        active = [p for p in alive if not p["metadata"].get("deletionTimestamp")]
        num_terminating = len(alive) - len(active)
        if spec["suspend"] or job["metadata"].get("deletionTimestamp"):
            record.started = None
            active, num_terminating = self._delete_pods(active), len(alive)
        else:
            record.started = record.started or time.time()
            if record.verdict is None:
                record.verdict = _verdict(spec, record)
            if record.verdict or _is_complete(spec, record, active):
                active, num_terminating = self._delete_pods(active), len(alive)
            else:
                active += self._create_pods(job, record, alive, active)
        self._write_status(job, record, active, num_terminating)

    def _account(self, job: Object, record: _Record, pod: Object) -> None:
        """Count a pod that ended, once: then its finalizer goes, and with it the right to remain when deleted."""
        phase, finalizers = pod["status"].get("phase"), pod["metadata"].get("finalizers") or []
        if TRACKING not in finalizers or phase not in TERMINAL_PHASES:
            return
        self._deletion.drop_finalizer(key_of(pod), TRACKING)
        index = index_of(pod)
        if phase == "Succeeded":
            record.num_succeeded_pods += 1
            if index is not None:
                record.succeeded.add(index)
            return
        action, match = matching_rule(job["spec"], pod)
        record.attempts[index] += 1
        record.last_failure[index] = time.time()
        if action == "Ignore":
            return
        record.num_failed_pods += 1
        if job["spec"]["suspend"]:
            return
        record.num_counted_failures += 1
        record.failures[index] += 1
        if action == "FailJob" and record.verdict is None:
            record.verdict = ("PodFailurePolicy", match)
        limit = job["spec"].get("backoffLimitPerIndex")
        if index is not None and limit is not None and (action == "FailIndex" or record.failures[index] > limit):
            record.failed.add(index)

    def _create_pods(self, job: Object, record: _Record, alive: list[Object], active: list[Object]) -> list[Object]:
        spec = job["spec"]
        occupying = alive if spec["podReplacementPolicy"] == "Failed" else active
        free = spec["parallelism"] - len(occupying)
        wanted: list[int | None]
        if spec["completionMode"] == "Indexed":
            taken = record.succeeded | record.failed | {index_of(p) for p in occupying}
            wanted = [i for i in range(spec["completions"]) if i not in taken]
        else:
            completions = spec.get("completions")
            missing = free if completions is None else completions - record.num_succeeded_pods - len(occupying)
            wanted = [None] * (0 if completions is None and record.num_succeeded_pods else max(missing, 0))
        ready = [index for index in wanted if time.time() >= self._not_before(spec, record, index)]
        failures, attempts = record.failures, record.attempts
        return [
            create_pod(self._store, job, index, failures[index], attempts[index] - failures[index])
            for index in ready[: max(free, 0)]
        ]

    def _not_before(self, spec: Any, record: _Record, index: int | None) -> float:
        if spec.get("backoffLimitPerIndex") is not None:
            attempts, last = record.attempts[index], record.last_failure.get(index, 0.0)
        else:
            attempts, last = sum(record.attempts.values()), max(record.last_failure.values(), default=0.0)
        return last + min(self._backoff * 2 ** (attempts - 1), 600) if attempts else 0.0

    def _delete_pods(self, pods: list[Object]) -> list[Object]:
        """Delete them all; returns those that stay active: none."""
        for pod in pods:
            self._deletion.delete(key_of(pod))
        return []

    def _write_status(self, job: Object, record: _Record, active: list[Object], num_terminating: int) -> None:
        spec, complete = job["spec"], record.verdict is None and _is_complete(job["spec"], record, active)
        ended = (complete or record.verdict is not None) and not active and not num_terminating

        def write(obj: Object) -> None:
            status = obj.setdefault("status", {})
            indexed = spec["completionMode"] == "Indexed"
            num_succeeded = len(record.succeeded) if indexed else record.num_succeeded_pods
            counts = {"active": len(active), "succeeded": num_succeeded, "failed": record.num_failed_pods}
            counts |= {"ready": sum(condition(p, "Ready") is not None for p in active), "terminating": num_terminating}
            status |= counts
            for name in ("active", "succeeded", "failed"):
                if not counts[name]:
                    status.pop(name)
            if indexed:
                status["completedIndexes"] = intervals(record.succeeded)
            if spec.get("backoffLimitPerIndex") is not None:
                status["failedIndexes"] = intervals(record.failed)
            _write_times_and_conditions(obj, record, complete, ended)

        updated = self._store.update(key_of(job), write)
        if ended and updated:
            record.finished = time.time()
            reason, message = record.verdict or ("Completed", "Job completed")
            self._store.event(updated, "Warning" if record.verdict else "Normal", reason, message)


def _write_times_and_conditions(job: Object, record: _Record, complete: bool, ended: bool) -> None:
    status, suspended = job["status"], condition(job, "Suspended")
    if job["spec"]["suspend"]:
        status.pop("startTime", None)
        if not suspended:
            set_condition(job, "Suspended", reason="JobSuspended", message="Job suspended")
        return
    if suspended:
        set_condition(job, "Suspended", "False", reason="JobResumed", message="Job resumed")
    status.setdefault("startTime", now())
    if complete or record.verdict:
        reached = ("CompletionsReached", "Reached expected number of succeeded pods")
        reason, message = record.verdict or reached
        early, late = ("FailureTarget", "Failed") if record.verdict else ("SuccessCriteriaMet", "Complete")
        for kind in [early] + [late] * ended:
            if not condition(job, kind):
                set_condition(job, kind, reason=reason, message=message)
        if ended and complete:
            status["completionTime"] = now()


def _verdict(spec: Any, record: _Record) -> tuple[str, str] | None:
    """Why the Job has failed, if it has."""
    if record.num_counted_failures > spec["backoffLimit"]:
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    deadline = spec.get("activeDeadlineSeconds")
    if deadline is not None and record.started is not None and time.time() - record.started >= deadline:
        return "DeadlineExceeded", "Job was active longer than specified deadline"
    most = spec.get("maxFailedIndexes")
    if most is not None and len(record.failed) > most:
        return "MaxFailedIndexesExceeded", "Job has exceeded the specified maximal number of failed indexes"
    if record.failed and len(record.failed | record.succeeded) >= spec["completions"]:
        return "FailedIndexes", "Job has failed indexes"
    return None


def _is_complete(spec: Any, record: _Record, active: list[Object]) -> bool:
    if spec["completionMode"] == "Indexed":
        return len(record.succeeded) >= spec["completions"]
    if spec.get("completions") is None:
        return record.num_succeeded_pods > 0 and not active
    return record.num_succeeded_pods >= spec["completions"]


def intervals(indexes: set[int]) -> str:
    """``0,2-4``: three or more in a row are written as first-last, as in completedIndexes."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(f"{r[0]}-{r[-1]}" if len(r) > 2 else ",".join(map(str, r)) for r in runs)


def _is_owned(pod: Object, uid: str) -> bool:
    return any(reference["uid"] == uid for reference in pod["metadata"].get("ownerReferences") or [])
