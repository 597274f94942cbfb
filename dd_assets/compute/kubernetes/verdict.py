"""What to say of tasks that left no outcome, from how the Job and its pods ended. Speaks with nobody."""

from collections.abc import Iterator

from dd_assets.compute.kubernetes.explain import Ending, Object, condition, indexes
from dd_core.events import Event, Failed, Note
from dd_core.jobs.job import Job

_KEPT = "what it had finished is kept, run the same command again to go on"
_DEFECT, _NO_JOB_FILE = (1, 2), 78


class Verdict:
    """Collects how pods failed, and says in the end what became of tasks."""

    def __init__(self, job: Job, name: str):
        """``name`` is that of the Job."""
        self._job, self._name = job, name
        self._endings: list[tuple[Ending, list[str]]] = []

    def add(self, ending: Ending, lines: list[str]) -> None:
        """A pod failed, and these are the last lines of its log."""
        self._endings.append((ending, lines))

    def on(self, manifest: Object | None, names: set[str]) -> Iterator[Event]:
        """The end of tasks that have none, given the Job as it ended; None: it is gone."""
        if not names:
            return
        failed = condition(manifest, "Failed", "FailureTarget") if manifest else None
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            yield from self.all_failed(names, f"somebody deleted the Job {self._name}; {_KEPT}")
        elif failed is None:
            text = (
                f"the Job {self._name} has ended well, but an outcome of this task is not on the data root; do its "
                "pods write to the same one?"
            )
            yield from self.all_failed(names, text)
        elif culprit := self._culprit(failed):
            yield from self._by_culprit(culprit, names)
        elif failed.get("reason") == "DeadlineExceeded":
            text = f"the Job {self._name} took longer than allowed (hours under resources); {_KEPT}"
            yield from self.all_failed(names, text)
        else:
            yield from self._by_place(manifest, failed, names)

    def all_failed(self, names: set[str], error: str) -> Iterator[Event]:
        """All of them for the same reason, which is no defect of the program."""
        for name in sorted(names):
            yield self._failed(name, error)

    def _culprit(self, failed: Object) -> tuple[Ending, list[str]] | None:
        """The pod for whose exit code the whole Job was ended: the one that the condition names, if it names one."""
        if failed.get("reason") != "PodFailurePolicy":
            return None
        guilty = [entry for entry in self._endings if entry[0].exit_code in (*_DEFECT, _NO_JOB_FILE)]
        named = [entry for entry in guilty if entry[0].pod in (failed.get("message") or "")]
        return next(iter([*named, *guilty]), None)

    def _by_culprit(self, culprit: tuple[Ending, list[str]], names: set[str]) -> Iterator[Event]:
        ending, lines = culprit
        last = _last(lines)
        if ending.exit_code == _NO_JOB_FILE:
            yield from self.all_failed(names, f"the pod {ending.pod} does not see the data root: {last or 'no log'}")
            return
        error = f"the pod {ending.pod} {ending.reason}{f': {last}' if last else ''}"
        log = "\n".join([f"the last lines of the log of {ending.pod}:", *(lines or ["(nothing)"])])
        place = {self._job.tasks[number].name for number in self._job.places[ending.place]}
        # The log once, with a task of the pod that wrote it.
        first = min(names & place or names)
        for name in sorted(names, key=lambda name: (name != first, name)):
            text = error if name in place else f"the Job was ended because {error}"
            yield Failed(task=name, error=text, traceback=log if name == first else None)

    def _by_place(self, manifest: Object, failed: Object, names: set[str]) -> Iterator[Event]:
        """Each task for the reason of its own pod."""
        lost = indexes((manifest.get("status") or {}).get("failedIndexes"))
        said: set[int] = set()
        for name in sorted(names):
            place = self._place_of(name)
            mine = [entry for entry in self._endings if entry[0].place == place]
            if not mine:
                others = f" (failed: {', '.join(map(str, sorted(lost)))})" if lost else ""
                text = f"{failed.get('reason')}: {failed.get('message') or 'no message'}{others}"
                yield self._failed(name, f"the Job {self._name} failed, {text}; {_KEPT}")
                continue
            ending, lines = mine[-1]
            if place not in said and lines:
                said.add(place)
                log = "\n".join([f"the last lines of the log of {ending.pod}:", *lines])
                yield Note(task=name, text=log)
            times = f", as {len(mine) - 1} before it" if len(mine) > 1 else ""
            last = f" ({_last(lines)})" if _last(lines) and not ending.is_out_of_memory else ""
            yield self._failed(name, f"the pod {ending.pod} {ending.reason}{last}{times}; {_KEPT}")

    def _place_of(self, name: str) -> int:
        number = next(number for number, task in enumerate(self._job.tasks) if task.name == name)
        return next((place for place, numbers in enumerate(self._job.places) if number in numbers), 0)

    def _failed(self, name: str, error: str) -> Failed:
        return Failed(task=name, error=error, is_user_error=True)


def _last(lines: list[str]) -> str:
    """The last line that says something to people; messages to Dagster are no such."""
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("{")), "")
