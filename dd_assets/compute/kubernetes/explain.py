"""What pods and Jobs are up to, in words. Pure functions on the API's JSON."""

import datetime
from dataclasses import dataclass
from typing import Any, Final

from dd_assets.compute.kubernetes.manifests import CONTAINER, GATE
from dd_core.jobs.exit_codes import KILLED, TOLD_TO_END

Object = dict[str, Any]
_INDEX: Final = "batch.kubernetes.io/job-completion-index"
# How often the index of a pod failed before: what counts against the limit, and what does not.
_FAILURES: Final = "batch.kubernetes.io/job-index-failure-count"
_IGNORED: Final = "batch.kubernetes.io/job-index-ignored-failure-count"
# Reasons of the condition DisruptionTarget.
_DISRUPTIONS: Final = {
    "EvictionByEvictionAPI": "was evicted",
    "TerminationByKubelet": "was evicted",
    "PreemptionByScheduler": "was preempted",
    "DeletionByTaintManager": "lost its node",
    "DeletionByPodGC": "lost its node",
}
# Reasons of a container that waits, and of events, which more room in the cluster would not mend.
_FAULTS: Final = {
    **dict.fromkeys(
        ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"], "cannot pull its image"
    ),
    **dict.fromkeys(["CreateContainerConfigError", "CreateContainerError", "RunContainerError"], "cannot be started"),
    **dict.fromkeys(["FailedMount", "FailedAttachVolume"], "cannot get its volume"),
    "FailedCreate": "cannot be made",
}


@dataclass(frozen=True)
class Waiting:
    """Why pods do not run yet.

    Attributes:
        reason: a clause without its subject: "waits for a node: 0/3 nodes are available ...".
        is_fault: whether something is wrong, rather than in use by others.
    """

    reason: str
    is_fault: bool


@dataclass(frozen=True)
class Ending:
    """How a pod ended otherwise than well.

    Attributes:
        place: index of the pod.
        pod: its name.
        exit_code: of the worker's container, if it ran.
        reason: a clause: "was killed for want of memory", "was evicted (...)".
        attempt: number of the attempt at its place, from 1.
        failures: how many of those before count against the limit of retries.
        at: when, in seconds since 1970, rounded down to whole ones by Kubernetes; None where it does not say.
        is_out_of_memory: it wanted more memory than it had.
        is_disruption: its node was lost or wanted for somebody else; Kubernetes starts it again.
    """

    place: int
    pod: str
    exit_code: int | None
    reason: str
    attempt: int
    failures: int
    at: float | None
    is_out_of_memory: bool
    is_disruption: bool


def condition(thing: Object, *kinds: str) -> Object | None:
    """The first of the conditions of a Job or pod that is true and of one of these kinds."""
    conditions: list[Object] = (thing.get("status") or {}).get("conditions") or []
    for kind in kinds:
        for entry in conditions:
            if entry["type"] == kind and entry["status"] == "True":
                return entry
    return None


def has_ended(job: Object) -> bool:
    """Whether a Job has come to its end, or is about to be gone."""
    return bool(job["metadata"].get("deletionTimestamp")) or condition(job, "Complete", "Failed") is not None


def is_ending(job: Object) -> bool:
    """Whether it is decided how the Job ends, although some of its pods may still be on their way out."""
    return has_ended(job) or condition(job, "FailureTarget", "SuccessCriteriaMet") is not None


def place_of(pod: Object) -> int:
    """The index of a pod of an Indexed Job."""
    metadata = pod["metadata"]
    text = (metadata.get("annotations") or {}).get(_INDEX) or (metadata.get("labels") or {}).get(_INDEX)
    return int(text) if text is not None else 0


def attempt_of(pod: Object) -> int:
    """The number of the attempt at its place that a pod is, from 1."""
    return 1 + _count(pod, _FAILURES) + _count(pod, _IGNORED)


def _count(pod: Object, annotation: str) -> int:
    return int((pod["metadata"].get("annotations") or {}).get(annotation) or 0)


def created_at(pod: Object) -> float:
    """When a pod was made, in seconds since 1970."""
    return _seconds(pod["metadata"]["creationTimestamp"])


def _seconds(time: str) -> float:
    return datetime.datetime.fromisoformat(time).timestamp()


def is_gated(pod: Object) -> bool:
    """Whether we keep it from being scheduled until its time has come."""
    return any(gate["name"] == GATE for gate in pod["spec"].get("schedulingGates") or [])


def phase(pod: Object) -> str:
    """Pending, Running, Succeeded or Failed."""
    return str((pod.get("status") or {}).get("phase") or "Pending")


def indexes(text: str | None) -> set[int]:
    """The members of an API's list of indexes: ``1,3-5`` is 1, 3, 4, 5."""
    found: set[int] = set()
    for part in (text or "").split(","):
        if part:
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found


def why_waiting(pod: Object, events: list[Object]) -> Waiting | None:
    """Why a pod does not run, or None where it is merely being started."""
    for status in _container_statuses(pod):
        waiting = (status.get("state") or {}).get("waiting") or {}
        if what := _FAULTS.get(waiting.get("reason", "")):
            message = waiting.get("message") or waiting["reason"]
            return Waiting(f"{what} ({waiting['reason']}: {_line(_longer(message, events, waiting['reason']))})", True)
    scheduled = next((c for c in pod.get("status", {}).get("conditions") or [] if c["type"] == "PodScheduled"), None)
    if scheduled and scheduled["status"] == "False":
        is_fault = "persistentvolumeclaim" in (scheduled.get("message") or "").lower()
        told = [e["message"] for e in events if e.get("reason") == "FailedScheduling" and e.get("message")]
        text = max([scheduled.get("message") or scheduled.get("reason") or "unknown", *told[-1:]], key=len)
        selector = (pod.get("spec") or {}).get("nodeSelector") or {}
        labels = ", ".join(f"{key}={value}" for key, value in selector.items())
        wish = f", with the labels {labels}" if labels and "affinity/selector" in text else ""
        return Waiting(f"waits for a node ({_line(text)}){wish}", is_fault)
    for event in reversed(events):
        if event.get("type") == "Warning" and (what := _FAULTS.get(event.get("reason", ""))):
            return Waiting(f"{what} ({event['reason']}: {_line(event.get('message') or '')})", True)
    return None


def why_no_pods(job: Object, events: list[Object]) -> Waiting | None:
    """Why a Job has no pods."""
    queue = (job["metadata"].get("labels") or {}).get("kueue.x-k8s.io/queue-name")
    if job["spec"].get("suspend"):
        of = f" in the queue {queue!r}" if queue else ""
        return Waiting(f"is suspended: it waits{of} to be admitted", False)
    for event in reversed(events):
        if event.get("reason") == "FailedCreate":
            return Waiting(f"gets no pods ({_line(event.get('message') or '')})", True)
    return None


def ending_of(pod: Object) -> Ending | None:
    """How a pod ended, if it failed by itself or its node did; not if somebody told it to end."""
    if phase(pod) != "Failed":
        return None
    status = pod.get("status") or {}
    disruption = condition(pod, "DisruptionTarget")
    terminated = _terminated(pod)
    code = terminated.get("exitCode")
    reasons = {terminated.get("reason"), status.get("reason")}
    if (
        pod["metadata"].get("deletionTimestamp")
        and not disruption
        and "OOMKilled" not in reasons
        and code in (None, KILLED, TOLD_TO_END)
    ):
        return None
    is_ended = bool({"Evicted", "DeadlineExceeded"} & reasons)
    out_of_memory = not disruption and ("OOMKilled" in reasons or (code == KILLED and not is_ended))
    if disruption:
        return disrupted(pod)
    if "DeadlineExceeded" in reasons:
        hours = (pod["spec"].get("activeDeadlineSeconds") or 0) / 3600
        reason = f"took longer than the {hours:.4g} h that an attempt may take (hours under resources)"
    elif out_of_memory:
        reason = f"was killed for want of memory (exit code {code})"
    elif code is None:
        reason = f"failed ({_line(status.get('message') or status.get('reason') or 'no reason given')})"
    else:
        reason = f"ended with exit code {code}"
    return _ending(pod, code, reason, is_out_of_memory=out_of_memory)


def disrupted(pod: Object) -> Ending | None:
    """How a pod ends whose node was lost or is wanted for somebody else, be it over or on its way; None: it is not.

    Nor is one that has finished its work all the same.
    """
    disruption = condition(pod, "DisruptionTarget")
    if disruption is None or phase(pod) == "Succeeded":
        return None
    why, message = disruption.get("reason") or "DisruptionTarget", _line(disruption.get("message") or "no message")
    words = _DISRUPTIONS.get(why, "lost its place on the node")
    return _ending(pod, _terminated(pod).get("exitCode"), f"{words} ({why}: {message})", is_disruption=True)


def _ending(
    pod: Object, code: int | None, reason: str, is_out_of_memory: bool = False, is_disruption: bool = False
) -> Ending:
    attempt, failures = attempt_of(pod), _count(pod, _FAILURES)
    place, name = place_of(pod), pod["metadata"]["name"]
    time = (condition(pod, "DisruptionTarget") or {}).get("lastTransitionTime") or _terminated(pod).get("finishedAt")
    at = _seconds(time) if time else None
    return Ending(place, name, code, reason, attempt, failures, at, is_out_of_memory, is_disruption)


def _terminated(pod: Object) -> Object:
    """How the worker's container ended, or else any that ended badly."""
    ended = {s["name"]: (s.get("state") or {}).get("terminated") or {} for s in _container_statuses(pod)}
    bad = [state for state in ended.values() if state.get("exitCode")]
    return ended.get(CONTAINER) or (bad[0] if bad else {})


def _container_statuses(pod: Object) -> list[Object]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def _longer(message: str, events: list[Object], reason: str) -> str:
    """The longer one of a container's short message and what an event says about the same."""
    about_image = "Pull" in reason or "Image" in reason
    told = [e["message"] for e in events if e.get("reason") in ("Failed", reason) and e.get("message")]
    return max([message, *(told if about_image else [])], key=len)


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 300 else f"{line[:300]}..."
