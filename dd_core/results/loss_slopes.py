"""The tables ``loss_slopes`` and ``loss_slope_fits``: every run's loss curve analysed. Rebuilt from files alone.

An arm has a file in each. It is analysed again only when its metric files, what is set for it or
``LOSS_SLOPE_VERSION`` have
changed; what a file was made from is in its manifest. Needs no torch.
"""

import json
import multiprocessing
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dd_core.analysis.loss_slopes.run import analyse_run
from dd_core.errors import UserError
from dd_core.results.arm_files import ArmFiles, digest_of_sources, remove_others
from dd_core.results.loss_curves import SOURCES, curves_of, settings_of
from dd_core.store.files import size_and_sha256
from dd_core.store.store import Store
from dd_core.study.study import Arm, Study
from dd_core.tables.damage import damaged_files, lost_files
from dd_core.tables.files import TABLES, read_parquet, to_arrow
from dd_core.tables.loss_slopes import LOSS_SLOPE_VERSION

LOSS_SLOPE_TABLES = ("loss_slopes", "loss_slope_fits")
# Runs, or bytes of metric files, that take longer than it takes to start processes, some seconds.
_MANY_RUNS, _MANY_BYTES = 40, 8_000_000


@dataclass
class Rebuilt:
    """What came of a study.

    Attributes:
        outcomes: number of runs by outcome.
        computed: keys of the arms that were analysed now.
        failed: by key of an arm why it could not be, a stack trace.
        left_out: sentences about runs that have no row.
    """

    outcomes: Counter[str] = field(default_factory=Counter)
    computed: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    @property
    def rows(self) -> int:
        """Runs that have a row."""
        return self.outcomes.total()


@dataclass(frozen=True)
class _Task:
    """An arm and the files that it is analysed from, of which some more may be damaged or lost."""

    arm: Arm
    files: dict[str, list[Path]]
    num_harmed: int
    digest: str
    num_bytes: int


def rebuild(store: Store, study: Study, num_processes: int = 1) -> Rebuilt:
    """Write the study's part of both tables; arms that have not changed stay as they are, arms that went are removed.

    Damaged and lost metric files are left out; ``dd_core.tables.damage`` says which they are, and the rows of their
    arm say that there are some.

    Args:
        store: where the tables lie.
        study: any, trained here or imported.
        num_processes: at most so many, where there is enough to do.
    """
    done = Rebuilt()
    tasks = _tasks(store, study, done)
    stale: list[_Task] = []
    of_earlier_recipe: list[str] = []
    for task in tasks:
        known = _known_outcomes(store, study, task)
        if known is None:
            stale.append(task)
        else:
            done.outcomes += known
    for task, outcomes, trace in _analysed(store, study, stale, num_processes):
        if trace:
            done.failed[task.arm.key] = trace
        elif outcomes:
            done.outcomes += outcomes
            done.computed.append(task.arm.key)
        else:
            of_earlier_recipe.append(task.arm.key)
    if of_earlier_recipe:
        keys = ", ".join(of_earlier_recipe)
        done.left_out.append(
            f"{study.name}: what there is of {keys} is of another recipe than the study file's; train it again"
        )
    kept = {task.arm.key for task in tasks} - {*done.failed, *of_earlier_recipe}
    remove_others(store, study, LOSS_SLOPE_TABLES, kept)
    return done


def _tasks(store: Store, study: Study, done: Rebuilt) -> list[_Task]:
    """The arms that have metrics, if there is something to fit in any of them."""
    harms = [*damaged_files(store, SOURCES, study.name), *lost_files(store, study, SOURCES)]
    harmed = {harm.path for harm in harms}
    tasks = []
    for arm in study.arms.values():
        found = {table: sorted(store.table_folder(table, study.name, arm.key).glob("*.parquet")) for table in SOURCES}
        files = {table: [path for path in paths if path not in harmed] for table, paths in found.items()}
        if any(files.values()):
            # An attempt is told by two files; a run of which neither is left has the status unknown.
            metrics = (table for table in SOURCES if table != "runs")
            folders = {str(store.table_folder(table, study.name, arm.key)) for table in metrics}
            tasks.append(_task(store, study, arm, files, sum(str(path.parent) in folders for path in harmed)))
    if any(task.files["training_batches"] or task.files["runs"] for task in tasks):
        return tasks
    if tasks:
        done.left_out.append(f"{study.name}: no arm has losses of batches, only of epochs, to which no curve is fitted")
    return []


def _task(store: Store, study: Study, arm: Arm, files: dict[str, list[Path]], num_harmed: int) -> _Task:
    settings = {**settings_of(study, arm), "loss_slopes": study.loss_slopes.model_dump(mode="json")}
    asked = json.dumps([LOSS_SLOPE_VERSION, num_harmed, study.imported, settings], sort_keys=True)
    paths = [path for paths in files.values() for path in paths]
    num_bytes = sum(found[0] for path in paths if (found := size_and_sha256(path)) is not None)
    return _Task(arm, files, num_harmed, digest_of_sources(store, asked, paths), num_bytes)


def _known_outcomes(store: Store, study: Study, task: _Task) -> Counter[str] | None:
    """What is stored of an arm whose files are there, unharmed and of the same sources; None of another."""
    files = ArmFiles(store, study, task.arm, LOSS_SLOPE_TABLES)
    if files.known(task.digest) is None:
        return None
    return Counter(read_parquet(files.path("loss_slopes"))["outcome"].to_pylist())


_Analysed = tuple[_Task, Counter[str], str]


def _analysed(store: Store, study: Study, tasks: list[_Task], num_processes: int) -> Iterator[_Analysed]:
    """Analyse arms, in processes of their own where that saves time."""
    is_much = len(tasks) * study.trials >= _MANY_RUNS or sum(task.num_bytes for task in tasks) >= _MANY_BYTES
    if min(num_processes, len(tasks)) < 2 or not is_much:
        for task in tasks:
            yield task, *_analyse(store.address, study, task)
        return
    # Forking would copy the locks of threads that Arrow and DuckDB have started here.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_processes, len(tasks)), context) as pool:
        results = pool.map(_analyse, *zip(*((store.address, study, task) for task in tasks), strict=True))
        for task, result in zip(tasks, results, strict=True):
            yield task, *result


def _analyse(address: str, study: Study, task: _Task) -> tuple[Counter[str], str]:
    """Analyse every run of an arm and write its files; the number of runs by outcome, and a stack trace if it failed.

    One arm that cannot be analysed is no reason to be without the others.
    """
    store = Store(address)
    try:
        rows, fits = _rows_of(study, task)
    except UserError:
        raise
    except Exception:  # a mistake of ours: the asset names the arm and logs where it happened
        return Counter(), traceback.format_exc()
    if not rows:
        return Counter(), ""
    tables = {}
    for table, content in zip(LOSS_SLOPE_TABLES, (rows, fits), strict=True):
        names = [column.name for column in TABLES[table].file_columns]
        tables[table] = to_arrow(table, {name: [row[name] for row in content] for name in names}, len(content))
    ArmFiles(store, study, task.arm, LOSS_SLOPE_TABLES).write(tables, task.digest)
    return Counter(row["outcome"] for row in rows), ""


def _rows_of(study: Study, task: _Task) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of an arm in both tables."""
    settings = settings_of(study, task.arm)
    place = {name: settings[name] for name in ("variant", "k", "recipe")}
    rows, fits = [], []
    for curve in curves_of(study, task.arm, task.files):
        row, own_fits = analyse_run(curve.run, study.loss_slopes)
        if task.num_harmed:
            harm = f"Damaged or lost metric files of the arm are left out: {task.num_harmed}."
            row = {**row, "reason": " ".join(filter(None, [row["reason"], harm]))}
        rows.append(
            {
                **settings,
                "trial": curve.trial,
                "status": curve.run.status,
                **row,
                "validation_is_test": curve.validation_is_test,
                "source_sha256": task.digest,
            }
        )
        fits += [{**place, "trial": curve.trial, **fit} for fit in own_fits]
    return rows, fits
