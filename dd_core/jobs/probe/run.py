"""The resource probe as a job: arms measured on the machine it runs on, the table written as they are done."""

import time
from collections.abc import Generator
from pathlib import Path

from dd_core.events import Event, Failed, Finished, Measured, Note, Started
from dd_core.forecast.probe_table import Measurement, is_uneven, recommended_workers, write_measurements
from dd_core.jobs.job import Job, ProbeTask
from dd_core.jobs.probe.team import measure
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.study import Arm

_MOST_GPU_WORKERS, _MOST_CPU_WORKERS = 5, 4


def run_probe(job: Job, machine: Machine, folder: Path) -> Generator[Event, None, None]:
    """Measure what the job's only task names, and yield its events.

    Args:
        job: of one ``ProbeTask``.
        machine: this one.
        folder: for the workers' job files, on this machine.

    Yields:
        ``measured`` with a sentence for every arm, ``note``, and ``finished``, which says how many rows the table got
        and how many workers are best for each arm; or ``failed``.
    """
    (task,) = job.tasks
    assert isinstance(task, ProbeTask)
    name = task.name
    started = time.monotonic()
    yield Started(task=name, number=0)
    store, notes = Store(job.root), list[str]()
    arms = [(job.studies[study], Arm(variant, k)) for study, variant, k in task.arms]
    counts = task.counts or default_counts(machine)
    found: dict[tuple[str, Arm], list[Measurement]] = {}
    for result in measure(job.root, arms, counts, machine, task.seconds, notes.append, folder=folder):
        rows = found.setdefault((result.study.name, result.arm), [])
        rows.append(result)
        while notes:
            yield Note(task=name, number=0, text=notes.pop(0))
        if _is_complete(rows, counts):
            write_measurements(store, machine, rows)
            yield Measured(task=name, number=0, text=_sentence(rows))
    for text in notes:
        yield Note(task=name, number=0, text=text)
    for rows in found.values():
        if not _is_complete(rows, counts):
            write_measurements(store, machine, rows)
    if not found:
        error = "no arm could be measured; the log above says why"
        yield Failed(task=name, number=0, error=error, is_user_error=True)
        return
    yield Finished(
        task=name,
        number=0,
        seconds=time.monotonic() - started,
        rows=sum(map(len, found.values())),
        machine=machine.describe(),
        recommended={f"{study}/{arm.key}": recommended_workers(rows) for (study, arm), rows in found.items()},
    )


def default_counts(machine: Machine) -> tuple[int, ...]:
    """Numbers of workers to measure, ascending: one to five on a GPU; on a CPU one to four, and one for each core."""
    if machine.num_gpus:
        return tuple(range(1, _MOST_GPU_WORKERS + 1))
    # Without a probe there is one for each core, so that must be among them.
    return tuple(sorted({*range(1, min(_MOST_CPU_WORKERS, machine.num_cores) + 1), machine.num_cores}))


def _is_complete(rows: list[Measurement], counts: tuple[int, ...]) -> bool:
    """Whether nothing more will be measured; one that failed is told of and leaves a gap."""
    return rows[-1].num_workers == counts[-1] or rows[-1].status != "ok"


def _sentence(rows: list[Measurement]) -> str:
    """What was found for one arm."""
    speeds = [
        f"{m.num_workers}: {m.samples_per_second:,.0f}/s ± {50 * (m.spread or 0):.0f} %"
        if m.samples_per_second
        else f"{m.num_workers}: {m.status}"
        for m in rows
    ]
    best = recommended_workers(rows)
    verdict = f"{best} recommended" if best else "memory is too small for one"
    if is_uneven(rows):
        verdict = "too uneven to recommend a number; probe again while nothing else runs on this machine"
    return f"{rows[0].study.name}/{rows[0].arm.key}, examples by number of workers {', '.join(speeds)}; {verdict}"
