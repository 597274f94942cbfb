"""Is every metric there at its frequency, for every run of a study, and in range?

Each table is grouped once. A metric of a trial has just the rows it must have if their number and the sum of the hashes
of their (epoch, step) are right; that other rows have the same sum is as unlikely as 2**-64. Only arms that differ, or
that have impossible values, are read row by row, to name what is wrong.

Of ``image_progress`` and ``class_progress`` rows are counted and no values looked at: the evaluations hold their means,
in which a value that is not finite would show.
"""

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import duckdb
import numpy as np
import pyarrow as pa

from dd_core.checks.conditions import Source, sources
from dd_core.checks.expected import Course, Expectations, trained_courses
from dd_core.checks.sentences import Gap, sentences, where
from dd_core.store.store import Store
from dd_core.study.study import Study

# Rows that are read at a time when something is wrong, some 200 bytes each.
_MOST_ROWS = 1_000_000

# By metric the number of rows and the sum of the hashes of their places, None where a value is not sound.
Prints = dict[str, tuple[int, int | None]]


def metric_gaps(store: Store, study: Study, connection: duckdb.DuckDBPyConnection) -> tuple[list[str], int]:
    """Look for values that are missing, doubled, misplaced, not finite or out of range.

    Only what must be there is asked for: everything up to the last checkpoint of each arm, or up to where a trial
    stopped early or diverged. More than the study asks for is no problem.

    Returns:
        Sentences that name arm, trials, metrics, and steps or epochs; the number of trials looked at.
    """
    found = trained_courses(store, study)
    if not found:
        return [], 0
    expected = Expectations(study, (course for trials in found.values() for course in trials))
    gaps: list[Gap] = []
    for source in sources(study, expected):
        gaps += _Check(connection, study, source, found).gaps()
    due = {arm: [expected.evaluations(course, of_images=True) for course in trials] for arm, trials in found.items()}
    images = _Counted("image_progress", "images", functools.cache(study.num_images_evaluated_at), due)
    gaps += _count_gaps(connection, study, found, images)
    if study.data.classes is not None:
        due = {arm: [expected.evaluations(course) for course in trials] for arm, trials in found.items()}
        num_splits = 1 + (study.data.num_validation > 0) + (study.num_test_images > 0)
        num_rows = functools.cache(lambda epoch: num_splits * study.num_classes_at(epoch))
        rows = _Counted("class_progress", "rows", num_rows, due)
        gaps += _count_gaps(connection, study, found, rows)
    order = {arm: number for number, arm in enumerate(study.arms)}
    problems = sentences(sorted(gaps, key=lambda gap: order[gap.arm]))
    return [*expected.obstacles, *problems], sum(len(trials) for trials in found.values())


class _Check:
    """One table of a study compared with what must be there."""

    def __init__(
        self, connection: duckdb.DuckDBPyConnection, study: Study, source: Source, found: dict[str, list[Course]]
    ):
        self._connection, self._study, self._source, self._courses = connection, study, source, found
        self._prints: dict[Course, Prints] = {}
        self._has_view = _has_view(connection, source.table)

    def gaps(self) -> Iterator[Gap]:
        """Everything that is wrong, arm by arm."""
        stored = self._stored_prints()
        num_rows: Counter[str] = Counter()
        for (arm, _), prints in stored.items():
            num_rows[arm] += sum(number for number, _ in prints.values())
        suspects = [
            arm
            for arm, trials in self._courses.items()
            if not all(self._is_whole(stored.get((arm, trial), {}), course) for trial, course in enumerate(trials))
        ]
        for chunk in _chunks(suspects, num_rows):
            rows = self._rows_of(chunk)
            ends = np.searchsorted(rows["place"], np.arange(1, len(chunk) + 2))
            for arm, start, stop in zip(chunk, ends, ends[1:], strict=False):
                yield from self._gaps_of(arm, {name: values[start:stop] for name, values in rows.items()})

    def _is_whole(self, stored: Prints, course: Course) -> bool:
        all_sound = all(total is not None for _, total in stored.values())
        return all_sound and self._due(course).items() <= stored.items()

    def _stored_prints(self) -> dict[tuple[str, int], Prints]:
        """The fingerprints of every trial in the table; metrics with a value that is not sound have none."""
        if not self._has_view:
            return {}
        source = self._source
        is_sound = " AND ".join(f"coalesce({condition}, false)" for condition in source.sound.values())
        rows = self._connection.execute(
            f"SELECT arm, trial, {source.metric} AS metric, count(*), sum(hash(epoch::INTEGER, step::BIGINT)), "
            f"bool_and({is_sound}) FROM {source.table} WHERE study = $study GROUP BY ALL",
            {"study": self._study.name, **source.parameters},
        ).fetchall()
        prints: dict[tuple[str, int], Prints] = {}
        for arm, trial, metric, num_rows, total, all_sound in rows:
            prints.setdefault((arm, trial), {})[metric] = (num_rows, total if all_sound else None)
        return prints

    def _due(self, course: Course) -> Prints:
        """The fingerprints of a trial that has just the rows it must have."""
        if course not in self._prints:
            prints: Prints = {}
            for metric, positions in self._source.due(course).items():
                if len(positions):
                    epochs, steps = self._source.places(course, positions)
                    places = pa.table({"epoch": epochs.astype(np.int32), "step": steps.astype(np.int64)})
                    ((total,),) = self._connection.from_arrow(places).aggregate("sum(hash(epoch, step))").fetchall()
                    prints[metric] = (len(positions), total)
            self._prints[course] = prints
        return self._prints[course]

    def _gaps_of(self, arm: str, rows: dict[str, np.ndarray]) -> Iterator[Gap]:
        """Everything that is wrong with one arm, from its rows."""
        for trial, course in enumerate(self._courses[arm]):
            due = self._source.due(course)
            is_own = (rows["trial"] == trial) & (rows["epoch"] <= course.last_epoch)
            for metric in dict.fromkeys([*due, *sorted(set(rows["metric"][is_own]))]):
                own = {name: values[is_own & (rows["metric"] == metric)] for name, values in rows.items()}
                positions = due.get(metric, np.array([], dtype=np.int64))
                if metric in self._source.begin_late and len(own["step"]):
                    positions = positions[positions >= own[self._source.unit].min()]
                for name, problem in self._problems(course, positions, own):
                    yield Gap(arm, trial, name.format(metric=metric), problem)

    def _rows_of(self, arms: list[str]) -> dict[str, np.ndarray]:
        """Where rows belong to (``place``: of the arm, from 1, ascending), and which conditions they do not meet."""
        source = self._source
        if not self._has_view:
            return {name: np.array([]) for name in ("place", "trial", "metric", "epoch", "step", *source.sound)}
        failed = ", ".join(f'NOT coalesce({condition}, false) AS "{name}"' for name, condition in source.sound.items())
        found = self._connection.execute(
            f"SELECT list_position($arms, arm) AS place, trial, {source.metric} AS metric, epoch::BIGINT AS epoch, "
            f"step, {failed} FROM {source.table} WHERE study = $study AND list_contains($arms, arm)",
            {"study": self._study.name, "arms": arms, **source.parameters},
        ).fetchnumpy()
        order = np.argsort(found["place"], kind="stable")
        return {name: np.asarray(values)[order] for name, values in found.items()}

    def _problems(self, course: Course, due: np.ndarray, rows: dict[str, np.ndarray]) -> Iterator[tuple[str, str]]:
        """What is wrong with a trial's metric: the name that a sentence begins with, and the rest of it."""
        source = self._source
        positions = rows[source.unit]
        there, counts = np.unique(positions, return_counts=True)
        missing = np.setdiff1d(due, positions)
        if len(missing):
            remark = ", as if asked for only after training" if source.by_monitors and len(missing) == len(due) else ""
            yield "{metric}", f"missing {source.preposition} {where(source.unit, missing, due)}{remark}"
        epochs, steps = source.places(course, positions)
        is_late = rows["step"] > course.num_steps if course.ending else np.zeros(len(positions), dtype=bool)
        is_misplaced = ((epochs != rows["epoch"]) | (steps != rows["step"])) & ~is_late
        is_excused = rows["step"] > course.last_sound if source.by_monitors else np.zeros(len(positions), dtype=bool)
        kinds = {
            ("{metric}", "there more than once"): there[counts > 1],
            ("{metric}", f"there although the trial had {course.ending},"): positions[is_late],
            ("{metric}", "recorded under an epoch and a step that do not belong together"): positions[is_misplaced],
            **{
                (name, "not finite or out of range"): positions[rows[name].astype(bool) & ~is_excused]
                for name in source.sound
            },
        }
        for (name, problem), those in kinds.items():
            if len(those):
                yield name, f"{problem} {source.preposition} {where(source.unit, np.unique(those), there)}"


def _chunks(arms: list[str], num_rows: Mapping[str, int]) -> Iterator[list[str]]:
    """Arms whose rows fit into memory together; opening all files of a table for each arm alone would take minutes."""
    chunk: list[str] = []
    for arm in arms:
        if chunk and sum(num_rows[other] for other in [*chunk, arm]) > _MOST_ROWS:
            yield chunk
            chunk = []
        chunk.append(arm)
    if chunk:
        yield chunk


@dataclass(frozen=True)
class _Counted:
    """A table of which rows are counted.

    Attributes:
        table: its name.
        what: the rows are.
        number: of a trial's rows at an epoch.
        due: the epochs of every trial, by arm.
    """

    table: str
    what: str
    number: Callable[[int], int]
    due: Mapping[str, list[np.ndarray]]


def _count_gaps(
    connection: duckdb.DuckDBPyConnection, study: Study, found: Mapping[str, list[Course]], counted: _Counted
) -> Iterator[Gap]:
    """Evaluations that are missing in a table, and those that do not have all their rows."""
    table, due = counted.table, counted.due
    has_view = _has_view(connection, table)
    # Answered from the files' row counts; a count by epoch has to read the columns.
    sql = f"SELECT arm, count(*) FROM {table} WHERE study = $study GROUP BY arm"
    stored = dict(connection.execute(sql, {"study": study.name}).fetchall()) if has_view else {}
    last = max((int(epochs.max()) for trials in due.values() for epochs in trials if len(epochs)), default=0)
    at_epochs = np.array([counted.number(epoch) for epoch in range(last + 1)])
    whole = {arm: sum(int(at_epochs[epochs].sum()) for epochs in trials) for arm, trials in due.items()}
    suspects = [arm for arm in due if stored.get(arm, 0) != whole[arm]]
    numbers: dict[tuple[str, int], dict[int, int]] = {}
    if suspects and has_view:
        sql = (
            f"SELECT arm, trial, epoch, count(*) FROM {table} "
            "WHERE study = $study AND list_contains($arms, arm) GROUP BY ALL"
        )
        for arm, trial, epoch, number in connection.execute(sql, {"study": study.name, "arms": suspects}).fetchall():
            if epoch <= found[arm][0].last_epoch:
                numbers.setdefault((arm, trial), {})[epoch] = number
    for arm in suspects:
        for trial, epochs in enumerate(due[arm]):
            yield from _gaps_of_counts(counted, arm, trial, epochs, numbers.get((arm, trial), {}))


def _gaps_of_counts(
    counted: _Counted, arm: str, trial: int, due: np.ndarray, numbers: Mapping[int, int]
) -> Iterator[Gap]:
    """What is wrong with a trial, by the number of its rows at each epoch."""
    there = np.array(sorted(numbers), dtype=np.int64)
    missing = np.setdiff1d(due, there)
    if len(missing):
        yield Gap(arm, trial, counted.table, f"missing at {where('epoch', missing, due)}")
    others: dict[int, list[int]] = {}
    for epoch, number in sorted(numbers.items()):
        if number != counted.number(epoch):
            others.setdefault(counted.number(epoch), []).append(epoch)
    for number, epochs in others.items():
        problem = f"of another number of {counted.what} than {number:,} at {where('epoch', np.array(epochs), there)}"
        yield Gap(arm, trial, counted.table, problem)


def _has_view(connection: duckdb.DuckDBPyConnection, table: str) -> bool:
    found = connection.execute("SELECT count(*) FROM duckdb_views() WHERE view_name = $table", {"table": table})
    return bool((found.fetchone() or (0,))[0])
