"""A job in SLURM followed to its end: news from the data root, states from squeue, one owner for every failure."""

import time
from collections.abc import Generator, Hashable, Iterator
from dataclasses import dataclass

from dd_assets.compute.elsewhere import KEPT
from dd_assets.compute.retries import Retries, named
from dd_assets.compute.slurm import commands
from dd_assets.compute.slurm.commands import NO_FILES, Element, SlurmError, UnreachableError
from dd_assets.compute.slurm.news import FileNews, last_lines
from dd_assets.compute.slurm.script import Submission
from dd_assets.compute.slurm.verdict import Verdict, describe_reason, is_hopeless, judge
from dd_core.events import Event
from dd_core.jobs.exit_codes import NO_JOB_FILE, NOT_STARTED

# So often in a row an element is started again without having got any further, where no number of retries is given.
_MOST_RESTARTS = 3
# A shared file system may show a file, and the queue a job, so much later.
_VISIBLE_SECONDS = 90.0
# Looks in a row at which a job waits without hope before that is believed.
_HOPELESS_LOOKS = 3
_SILENCE_SECONDS = 60.0
_END_SECONDS = 60.0


@dataclass
class _Restarts:
    """How an element was started again.

    Attributes:
        seen: how often, as SLURM counts.
        in_vain: how often in a row by us, without a step forward in between.
        steps: how far it had got at the last one.
    """

    seen: int
    in_vain: int = 0
    steps: int = 0


class Following:
    """One job from the moment SLURM has it."""

    def __init__(self, number: int, submission: Submission, news: FileNews):
        """``number`` is the job's in SLURM, ``submission`` what was submitted."""
        self.number, self.submission, self.news = number, submission, news
        self.is_over = False
        self._elements: dict[int, Element] = {}
        self._retries = Retries.of(submission.resources)
        self._restarts: dict[int, _Restarts] = {}
        # When an element in the queue shall begin, by the clock of time.monotonic, until SLURM has been told.
        self._due: dict[int, float] = {}
        self._waits = _Waits()
        self._noted: set[str] = set()
        self._hopeless_looks = 0
        self._next_complaint = _SILENCE_SECONDS

    def events(self) -> Generator[Event, None, None]:
        """Follow it until every task has ended; yields their events."""
        while True:
            yield from self.news.read()
            if not self.news.left:
                break
            try:
                yield from self._look()
            except SlurmError as error:  # the job goes on meanwhile, and what it finishes is heard of as before
                if self._waits.seconds("silence") > self._next_complaint:
                    self._next_complaint *= 2
                    yield self.news.note(f"SLURM has not answered for {self._waits.seconds('silence'):.0f} s: {error}")
            else:
                self._waits.over("silence")
                self._next_complaint = _SILENCE_SECONDS
            time.sleep(self.submission.settings.poll_seconds)
        self._await_end()
        self.is_over = True

    def _tasks(self, index: int) -> set[int]:
        """Numbers of an element's tasks."""
        job = self.submission.job
        return set(range(len(job.tasks)) if self.submission.is_together else job.places[index])

    def _name(self, index: int | None = None) -> str:
        """The job or an element of it, for people."""
        job = f"SLURM job {self.number}"
        return job if index is None or self.submission.is_together else f"element {index} of {job}"

    def _look(self) -> Iterator[Event]:
        """Look at the queue once, and deal with what has changed there."""
        found = commands.elements(self.submission.job.name)
        self._elements = {element.index: element for element in found if element.job == self.number}
        for index in range(self.submission.num_elements):
            if self._tasks(index) & self.news.left:
                yield from self._look_at(index)
        yield from self._look_at_waiting()

    def _look_at(self, index: int) -> Iterator[Event]:
        """Deal with an element that has ended, or that nobody knows any more, while tasks of it are left."""
        element = self._elements.get(index)
        if element is None:
            if self._waits.seconds(("unknown", index)) > _VISIBLE_SECONDS:
                state = commands.accounted(self.number, index, not self.submission.is_together)
                about = f", which last knew it as {state}" if state else ""
                yield from self._fail(index, f"is not known to SLURM any more{about}; {KEPT}")
            return
        self._waits.over(("unknown", index))
        if index in self._due and element.is_waiting:
            yield from self._set_begin(element)
        restarts = self._restarts.setdefault(index, _Restarts(element.restarts))
        if element.restarts > restarts.seen:
            restarts.seen = element.restarts
            yield from self._put_back(element)
        # Not before the news has been read once more: its last outcome may have come after that, right before its end.
        elif element.has_ended and (waited := self._waits.seconds(("ended", index, element.restarts))):
            yield from self._act(element, restarts, waited)

    def _set_begin(self, element: Element) -> Iterator[Event]:
        """Tell SLURM when the retry of an element shall begin; if it does not answer, once more at the next look."""
        seconds = max(0.0, self._due[element.index] - time.monotonic())
        try:
            commands.begin_after(element, not self.submission.is_together, seconds)
        except UnreachableError:
            raise
        except SlurmError as error:
            yield self.news.note(
                f"{self._name(element.index)} begins when SLURM lets it, which refuses a time ({error})"
            )
        del self._due[element.index]

    def _put_back(self, element: Element) -> Iterator[Event]:
        """SLURM itself has put an element back into the queue, as after a preemption."""
        if self._retries.most is not None and element.restarts > self._retries.most:
            commands.cancel_element(element, not self.submission.is_together)
            yield from self._fail(element.index, f"was lost {element.restarts} times, {self._all_retries}; {KEPT}")
            return
        yield self._note_of_retry(element, "went back into SLURM's queue", element.restarts)

    @property
    def _all_retries(self) -> str:
        return f"and {self._retries.most} retries were asked for"

    def _note_of_retry(self, element: Element, how: str, retry: int, further: str = "") -> Event:
        """Say who is tried again and when, and see to it."""
        tasks = sorted(self._tasks(element.index) & self.news.left)
        who = named([self.submission.job.tasks[number].name for number in tasks], "what is left")
        if seconds := self._retries.seconds(retry):
            self._due[element.index] = time.monotonic() + seconds
        again = self._retries.announce(retry, "as soon as SLURM lets it", is_last=False)
        return self.news.note(f"{who}: {self._name(element.index)}{_on(element)} {how}; {again}{further}")

    def _act(self, element: Element, restarts: _Restarts, waited: float) -> Iterator[Event]:
        """Do what the end of an element asks for."""
        verdict, how = judge(element), element.describe_end()
        if verdict is Verdict.LOOK_AGAIN:
            if waited > _VISIBLE_SECONDS:
                yield from self._fail(element.index, f"{how}, but told nothing of it; does it see the same data root?")
        elif verdict is Verdict.STOPPED:
            yield from self._fail(element.index, f"{how}; {KEPT}")
        elif verdict is Verdict.BROKEN:
            yield from self._give_up_broken(element)
        else:
            yield from self._again(element, restarts, verdict)

    def _again(self, element: Element, restarts: _Restarts, verdict: Verdict) -> Iterator[Event]:
        """Put an element back into the queue, unless that has been in vain too often."""
        index, how, steps = element.index, element.describe_end(), self._steps(element.index)
        in_vain = 0 if steps > restarts.steps else restarts.in_vain
        if verdict is not Verdict.AGAIN_AT_ONCE:
            in_vain += 1
        most = self._retries.most
        if most is None and in_vain > _MOST_RESTARTS:
            yield from self._fail(index, f"{how}, {in_vain} times without getting any further; {KEPT}")
            return
        if most is not None and element.restarts >= most:
            yield from self._fail(index, f"{how} in attempt {element.restarts + 1}, {self._all_retries}; {KEPT}")
            return
        try:
            commands.requeue(element, not self.submission.is_together)
        except UnreachableError:
            raise
        except SlurmError as error:
            yield from self._fail(index, f"{how}, and SLURM does not put it back into the queue ({error}); {KEPT}")
            return
        less = ""
        if verdict is Verdict.AGAIN_WITH_LESS_MEMORY:
            less = f", with 1/{2 ** self.news.folder.halve(index)} of the batch at a time"
        self._restarts[index] = _Restarts(element.restarts + 1, in_vain, steps)
        yield self._note_of_retry(element, how, element.restarts + 1, less)

    def _fail(self, index: int, how: str) -> Iterator[Event]:
        """The tasks of an element that are left have failed."""
        element = self._elements.get(index)
        where = _on(element) if element else ""
        log = f" (log: {self.submission.log(index)})"
        yield from self.news.give_up(self._tasks(index), f"{self._name(index)}{where} {how}{log}")

    def _give_up_broken(self, element: Element) -> Iterator[Event]:
        """What failed here would fail on every machine: end the whole job and show the end of this one's log."""
        commands.cancel(self.number)
        log = self.submission.log(element.index)
        how, lines = f"{self._name(element.index)}{_on(element)} {element.describe_end()}", last_lines(log)
        last = lines.rpartition("\n")[2] or "it printed nothing"
        is_defect = False
        if element.signal == NO_FILES:
            error = f"{how} ({log}); does that node see the data root {self.submission.root}?"
        elif element.exit_code == NO_JOB_FILE:
            error = f"{how}: {last}"
        elif element.exit_code in NOT_STARTED or "No module named" in last:
            error = f"{how}: {last}; check python and setup in the file that DD_SLURM names (log: {log})"
        else:
            error, is_defect = f"{how}: {last} (log: {log})", True
        yield from self.news.give_up(self._tasks(element.index), error, lines if is_defect else None)
        yield from self.news.give_up(set(self.news.left), f"the job was ended, since {error}")

    def _look_at_waiting(self) -> Iterator[Event]:
        """Say why nothing of the job runs, and give it up where that is of no use or takes too long."""
        unfinished = [element for index, element in self._elements.items() if self._tasks(index) & self.news.left]
        # The pause before a retry is asked for, whatever room there is.
        waiting = [element for element in unfinished if element.short_reason != "BeginTime"]
        if not waiting or not all(element.is_waiting for element in unfinished):
            self._waits.over("queue")
            self._noted.clear()
            self._hopeless_looks = 0
            return
        reason, patience = waiting[0].short_reason, self.submission.settings.pending_patience_seconds
        waited = self._waits.seconds("queue")
        if reason and reason not in self._noted:
            self._noted.add(reason)
            yield self.news.note(f"{self._name()} waits {describe_reason(reason)}")
        self._hopeless_looks = self._hopeless_looks + 1 if is_hopeless(reason) else 0
        if self._hopeless_looks >= _HOPELESS_LOOKS:
            commands.cancel(self.number)
            yield from self.news.give_up(
                set(self.news.left),
                f"{self._name()} asks for more than it may ever have there (SLURM calls it {reason}); ask for less "
                "under resources, or name another partition",
            )
        elif patience is not None and waited > patience:
            commands.cancel(self.number)
            yield from self.news.give_up(
                set(self.news.left),
                f"{self._name()} has waited {describe_reason(reason)} for longer than pending_patience_seconds "
                f"({patience:g}) and was given up",
            )

    def _steps(self, index: int) -> int:
        """How far an element has got."""
        steps = self.news.steps
        return steps.total() if self.submission.is_together else steps[index]

    def _await_end(self) -> None:
        """Wait until SLURM has cleaned up, so that nobody takes what is just ending for a job that runs."""
        deadline = time.monotonic() + _END_SECONDS
        while time.monotonic() < deadline:
            try:
                found = commands.elements(self.submission.job.name)
            except SlurmError:
                return
            if all(element.has_ended for element in found if element.job == self.number):
                return
            time.sleep(min(1.0, self.submission.settings.poll_seconds))


class _Waits:
    """Since when something has been so."""

    def __init__(self) -> None:
        self._since: dict[Hashable, float] = {}

    def seconds(self, what: Hashable) -> float:
        """Seconds since this was asked first; 0 the first time."""
        now = time.monotonic()
        return now - self._since.setdefault(what, now)

    def over(self, what: Hashable) -> None:
        """It is so no more."""
        self._since.pop(what, None)


def _on(element: Element) -> str:
    return f" on {element.nodes}" if element.nodes else ""
