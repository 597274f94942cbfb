"""The life of a job that runs elsewhere, at a place that does at once what it is told and remembers it."""

import contextlib
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import dagster as dg
import pytest

from dd_assets.compute.elsewhere import News, run_elsewhere
from dd_assets.compute.retries import Retries, named
from dd_core.errors import UserError
from dd_core.events import CheckpointWritten, Event, Failed, Finished, Note, Progress, Started
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job, TrainTask, training_job
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.resources import Resources
from dd_core.study.study import Study

MakeStudy = Callable[..., Study]
NARROW, WIDE = "tiny/plain.k001", "tiny/plain.k002"


class Followed:
    """A job all of whose tasks end as soon as somebody looks, those with these names badly."""

    is_over = True

    def __init__(self, news: News, failing: Container[str], before: Sequence[Event] = ()):
        """``failing``: names of tasks; ``before``: what is told of them before."""
        self.news, self._failing, self._before = news, failing, before

    def events(self) -> Iterator[Event]:
        """A note, and the end of every task that is wanted."""
        yield self.news.note("it runs")
        for event in self._before:
            yield from self.news.tell(event)
        for number, task in enumerate(self.news.job.tasks):
            end = Failed(error="no luck") if task.name in self._failing else Finished(seconds=1.0)
            self.news.folder.write_outcome(number, end.of(task.name, number))
        for _, event in sorted(self.news.outcomes().items()):
            yield from self.news.tell(event)


class Asked:
    """A request that finds a job which runs already, if there is one, and submits what it is asked for otherwise."""

    machine = Machine("cpu", 0, 1, None, 2)
    end = "the job was ended"

    def __init__(
        self,
        store: Store,
        found: Job | None = None,
        is_inside: bool = False,
        failing: Container[str] = (),
        before: Sequence[Event] = (),
    ):
        """``found`` runs already; tasks named in ``failing`` fail; ``before`` is told of the first job's tasks."""
        self.store, self.found, self.is_inside, self.failing = store, found, is_inside, failing
        self.before = before
        self.started: list[Job] = []
        self.cancelled = 0

    def start(self, job: Job) -> Followed:
        """Write the job file."""
        running, self.found = self.found or job, None
        self.started.append(running)
        folder = JobFolder.of(self.store, running)
        folder.prepare(running)
        return Followed(News(folder, running, job.names), self.failing, self.before if len(self.started) == 1 else ())

    def cancel(self) -> bool:
        """Count."""
        self.cancelled += 1
        return True


@pytest.fixture
def job(tiny_study: Study, tmp_path: Path) -> Job:
    """Train both arms, the wider first."""
    return training_job(tmp_path / "root", tiny_study, list(tiny_study.iter_checkpoints()), 1, 1)


def part(job: Job, name: str) -> Job:
    tasks = tuple(task for task in job.tasks if task.name == name)
    return job.model_copy(update={"tasks": tasks, "places": ((0,),)})


def run(asked: Asked, job: Job, leave_after: int = 1000, error: type[BaseException] | None = None) -> list[Event]:
    """Within an asset; leaves after so many events, by closing the generator or by an error that it meets."""
    events: list[Event] = []

    @dg.asset
    def computed(context: dg.AssetExecutionContext) -> None:
        with contextlib.closing(run_elsewhere(asked, context, job)) as news:
            for event in news:
                events.append(event)
                if len(events) == leave_after:
                    if error:
                        news.throw(error)
                    break

    dg.materialize([computed])
    return events


def ends(events: list[Event]) -> list[tuple[str, int | None, str]]:
    return [(e.task, e.number, e.name) for e in events if not isinstance(e, Note)]


def files(store: Store) -> list[Path]:
    return [path for path in store.jobs_folder.rglob("*") if path.is_file()]


def test_a_job_is_divided_followed_and_forgotten(store: Store, job: Job) -> None:
    asked = Asked(store)
    assert ends(run(asked, job)) == [(WIDE, 0, "finished"), (NARROW, 1, "finished")]
    (started,) = asked.started
    assert started.places == ((0,), (1,))
    assert files(store) == []
    assert asked.cancelled == 0


def test_what_a_found_job_lacks_is_submitted_after_it_and_counted_as_it_was_asked(store: Store, job: Job) -> None:
    asked = Asked(store, found=part(job, NARROW))
    assert ends(run(asked, job)) == [(NARROW, 1, "finished"), (WIDE, 0, "finished")]
    assert [[task.name for task in started.tasks] for started in asked.started] == [[NARROW], [WIDE]]


def test_of_a_found_job_that_does_more_only_what_was_asked_for_is_told(store: Store, job: Job) -> None:
    events = run(Asked(store, found=job.model_copy(update={"places": ((0, 1),)})), part(job, NARROW))
    assert ends(events) == [(NARROW, 0, "finished")]
    assert {event.task for event in events} == {NARROW}


def test_what_a_failed_job_leaves_is_kept_for_those_who_look(store: Store, job: Job) -> None:
    assert ends(run(Asked(store, failing={WIDE}), job)) == [(WIDE, 0, "failed"), (NARROW, 1, "finished")]
    assert {path.name for path in files(store)} == {"job.json", "0.json", "1.json"}


def test_who_leaves_for_good_ends_the_job_and_who_is_moved_does_not(store: Store, job: Job) -> None:
    for is_inside, cancelled in ((False, 1), (True, 0)):
        asked = Asked(store, is_inside=is_inside)
        run(asked, job, leave_after=1)
        assert asked.cancelled == cancelled


def test_an_interruption_ends_the_job_in_a_sentence(store: Store, job: Job) -> None:
    asked = Asked(store)
    with pytest.raises(UserError, match="interrupted: the job was ended; what it had finished is kept"):
        run(asked, job, leave_after=1, error=KeyboardInterrupt)
    assert asked.cancelled == 1


def test_tasks_without_an_outcome_fail_once_and_say_whether_by_a_defect(store: Store, job: Job) -> None:
    news = News(JobFolder.of(store, job), job, {NARROW, WIDE})
    (first,) = news.give_up({0}, "lost")
    (second,) = news.give_up({0, 1}, "broken", "the log")
    assert first == Failed(task=WIDE, number=0, error="lost", is_user_error=True)
    assert second == Failed(task=NARROW, number=1, error="broken", is_user_error=False, traceback="the log")
    assert list(news.tell(Finished(task=WIDE, number=0, seconds=1.0))) == []
    assert (news.left, news.any_failed) == (set(), True)


def networks(make_study: MakeStudy, root: Path, *shared: str) -> Job:
    """A network for each word, with an arm ``v<letter>`` of each of its letters."""
    recipe = make_study().variants["plain"].model_dump(exclude_unset=True)
    study = make_study(variants={f"v{letter}": recipe for letter in "abcdef"}, widths=(1,))
    tasks = [
        TrainTask(study="tiny", variant=f"v{first}", k=1, until=4, also=tuple(f"v{letter}" for letter in others))
        for first, *others in shared
    ]
    return Job(root=root, studies={"tiny": study}, tasks=tuple(tasks), num_workers=1, threads=1, request="asked")


def test_checkpoints_of_arms_that_share_a_network_keep_the_names_of_theirs(make_study: MakeStudy, store: Store) -> None:
    job = networks(make_study, store.root, "abc", "def")
    told = [
        Started(task=job.tasks[1].name, number=1),
        Progress(task=job.tasks[1].name, number=1, epoch=2),
        *(CheckpointWritten(task=f"tiny/v{arm}.k001", number=1, epoch=2) for arm in "def"),
    ]
    events = run(Asked(store, before=told), job)
    assert [event for event in events if not isinstance(event, Note | Finished)] == told


def test_the_number_of_a_task_is_that_of_the_job_that_was_asked_for(make_study: MakeStudy, store: Store) -> None:
    job = networks(make_study, store.root, "abc", "def")
    found = networks(make_study, store.root, "def").model_copy(update={"places": ((0,),)})
    told = [CheckpointWritten(task="tiny/ve.k001", number=0, epoch=2)]
    events = run(Asked(store, found=found, before=told), job)
    assert [event for event in events if isinstance(event, CheckpointWritten)] == [told[0].of("tiny/ve.k001", 1)]


def test_a_found_job_whose_arms_share_other_networks_is_followed_to_the_end(
    make_study: MakeStudy, store: Store
) -> None:
    """As another orchestrator would divide what the one before has left."""
    whole = networks(make_study, store.root, "abcd", "ef").model_copy(update={"places": ((0, 1),)})
    told = [
        Progress(task=whole.tasks[0].name, number=0, epoch=2),
        CheckpointWritten(task="tiny/va.k001", number=0, epoch=2),
        CheckpointWritten(task="tiny/vc.k001", number=0, epoch=2),
    ]
    job = networks(make_study, store.root, "bc", "de", "f")
    asked = Asked(store, found=whole, before=told)
    names = [task.name for task in job.tasks]
    events = [event for event in run(asked, job) if not isinstance(event, Note)]
    assert events[:2] == [told[0].of(names[0], 0), told[0].of(names[1], 1)]
    assert events[2:4] == [told[1].of("tiny/va.k001", 0), told[2].of("tiny/vc.k001", 0)], "nobody asked for the first"
    assert ends(events[4:]) == [(names[0], 0, "finished"), (names[1], 1, "finished"), (names[2], 2, "finished")]
    assert asked.started == [whole], "and nothing is submitted again"


def test_a_network_fails_where_one_of_the_networks_does_that_have_its_arms(make_study: MakeStudy, store: Store) -> None:
    whole = networks(make_study, store.root, "abcd", "ef").model_copy(update={"places": ((0, 1),)})
    job = networks(make_study, store.root, "bc", "de", "f")
    events = run(Asked(store, found=whole, failing={whole.tasks[0].name}), job)
    assert [(number, how) for _, number, how in ends(events)] == [(0, "failed"), (1, "failed"), (2, "finished")]
    assert [e.error for e in events if isinstance(e, Failed)] == ["no luck"] * 2


def test_arms_that_a_found_job_lacks_are_submitted_with_those_of_their_network(
    make_study: MakeStudy, store: Store
) -> None:
    found = networks(make_study, store.root, "ab").model_copy(update={"places": ((0,),)})
    job = networks(make_study, store.root, "bc", "a")
    asked = Asked(store, found=found, failing={found.tasks[0].name})
    assert ends(run(asked, job)) == [(job.tasks[1].name, 1, "failed"), (job.tasks[0].name, 0, "finished")]
    assert [started.tasks for started in asked.started] == [found.tasks, job.tasks[:1]]


def test_each_further_retry_waits_twice_as_long_up_to_an_hour() -> None:
    """Seed 003: two retries, after 60 and 120 s."""
    retries = Retries.of(Resources(retries=2, retry_seconds=60.0))
    assert [retries.seconds(retry) for retry in range(4)] == [0, 60, 120, 240]
    assert retries.seconds(7) == retries.seconds(2000) == 3600
    assert Retries(first_seconds=7200.0).seconds(5) == 7200
    assert retries.announce(1, "soon", is_last=False) == "again in 60 s (attempt 2 of 3)"
    assert retries.announce(2, "soon", is_last=False) == "again in 120 s (attempt 3 of 3)"
    assert retries.announce(3, "soon", is_last=True) == "that was attempt 3, and the last"
    assert Retries().announce(4, "soon", is_last=False) == "again soon (attempt 5)"


def test_an_attempt_is_called_by_its_tasks() -> None:
    assert named(["s/a.k001"], "place 0") == "s/a.k001"
    assert named(["s/a.k001", "s/b.k001", "s/c.k001"], "place 0") == "s/a.k001 and 2 other tasks"
    assert named([], "place 0") == "place 0"
