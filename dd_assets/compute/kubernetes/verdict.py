"""What to say of tasks that left no outcome, from how the Job and its pods ended. Speaks with nobody."""

from collections.abc import Iterator

from dd_assets.compute.elsewhere import KEPT, News
from dd_assets.compute.kubernetes.explain import Ending, Object, condition, indexes
from dd_core.events import Event
from dd_core.jobs.exit_codes import DEFECTS, KILLED, NO_JOB_FILE, TOLD_TO_END


class Verdict:
    """Collects how pods failed, and says in the end what became of tasks."""

    def __init__(self, news: News, name: str):
        """``name`` is that of the Job."""
        self._news, self._name = news, name
        self._endings: list[tuple[Ending, list[str]]] = []

    def add(self, ending: Ending, lines: list[str]) -> None:
        """A pod failed, and these are the last lines of its log."""
        self._endings.append((ending, lines))

    def on(self, manifest: Object | None) -> Iterator[Event]:
        """The end of tasks that have none, given the Job as it ended; None: it is gone."""
        if not self._news.awaited:
            return
        failed = condition(manifest, "Failed", "FailureTarget") if manifest else None
        if manifest is None or manifest["metadata"].get("deletionTimestamp"):
            yield from self._all_failed(f"somebody deleted the Job {self._name}; {KEPT}")
        elif failed is None:
            text = (
                f"the Job {self._name} has ended well, but an outcome of this task is not on the data root; do its "
                "pods write to the same one?"
            )
            yield from self._all_failed(text)
        elif culprit := self._culprit(failed):
            yield from self._by_culprit(*culprit)
        else:
            yield from self._by_place(failed, indexes((manifest.get("status") or {}).get("failedIndexes")))

    def _all_failed(self, error: str) -> Iterator[Event]:
        return self._news.give_up(self._news.awaited, error)

    def _culprit(self, failed: Object) -> tuple[Ending, list[str]] | None:
        """The pod for whose exit code the whole Job was ended: the one that the condition names, if it names one."""
        if failed.get("reason") != "PodFailurePolicy":
            return None
        guilty = [entry for entry in self._endings if entry[0].exit_code in (*DEFECTS, NO_JOB_FILE)]
        named = [entry for entry in guilty if entry[0].pod in (failed.get("message") or "")]
        return next(iter([*named, *guilty]), None)

    def _by_culprit(self, ending: Ending, lines: list[str]) -> Iterator[Event]:
        last, awaited = _last(lines), self._news.awaited
        if ending.exit_code == NO_JOB_FILE:
            yield from self._all_failed(f"the pod {ending.pod} does not see the data root: {last or 'no log'}")
            return
        error = f"the pod {ending.pod} {ending.reason}{f': {last}' if last else ''}"
        mine = set(self._news.job.places[ending.place])
        # The log once, with a task of the pod that wrote it.
        first = min(awaited & mine or awaited)
        for number in sorted(awaited, key=lambda number: (number != first, number)):
            text = error if number in mine else f"the Job was ended because {error}"
            log = _log(ending, lines or ["(nothing)"]) if number == first else None
            yield from self._news.give_up({number}, text, log, is_defect=True)

    def _by_place(self, failed: Object, lost: set[int]) -> Iterator[Event]:
        """Each task for the reason of its own pod."""
        for place, tasks in enumerate(self._news.job.places):
            numbers = self._news.awaited & set(tasks)
            if not numbers:
                continue
            endings = [entry for entry in self._endings if entry[0].place == place]
            if not endings:
                others = f" (failed: {', '.join(map(str, sorted(lost)))})" if lost else ""
                text = f"{failed.get('reason')}: {failed.get('message') or 'no message'}{others}"
                yield from self._news.give_up(numbers, f"the Job {self._name} failed, {text}; {KEPT}")
                continue
            ending, lines = endings[-1]
            if lines:
                yield self._news.note(_log(ending, lines), min(numbers))
            times = f" in attempt {ending.attempt}, the last" if ending.attempt > 1 else ""
            last = f" ({_last(lines)})" if _last(lines) and ending.exit_code not in (None, KILLED, TOLD_TO_END) else ""
            yield from self._news.give_up(numbers, f"the pod {ending.pod} {ending.reason}{last}{times}; {KEPT}")


def _log(ending: Ending, lines: list[str]) -> str:
    return "\n".join([f"the last lines of the log of {ending.pod}:", *lines])


def _last(lines: list[str]) -> str:
    """The last line that says something to people; messages to Dagster are no such."""
    return next((line.strip() for line in reversed(lines) if line.strip() and not line.startswith("{")), "")
