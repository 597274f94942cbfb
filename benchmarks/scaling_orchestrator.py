"""What partitions cost the orchestrator: the real asset ``curvature``, whose jobs run where work takes no time.

The results (``scaling_partitions.py``) wait aside until the job asks for them; the place then moves them in and says of
every task at once that it has finished. What remains is the orchestrator's: before it runs the job (manifests,
division), for each partition as it is told of it (manifests again, Dagster's event), and after (summary table, views).
Pieces are timed alone beside it; an exponent of 1 means that they grow as the partitions do, for what is done for each
event (x 1000) that the whole grows as their square.
"""

import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dagster as dg
import numpy as np
from common import load_average
from scaling_partitions import lay_out, study_of

from dd_assets.assets.curvature import CURVATURE_ASSETS
from dd_assets.compute import Place
from dd_assets.laboratory import Laboratory
from dd_assets.steps.checkpoint_results import CheckpointResult
from dd_assets.steps.follow import _Meter
from dd_assets.steps.recording import PartitionRecorder
from dd_core.events import CheckpointWritten, Event, Finished
from dd_core.jobs.division import divided
from dd_core.jobs.folder import JobFolder
from dd_core.jobs.job import Job, result_job
from dd_core.machine.devices import Machine
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.resources import Resources
from dd_core.study.study import Study
from dd_core.tables.warehouse import connect, refresh

MACHINE = Machine("simulated", 8, 64, None, 8)


@dataclass
class Instant:
    """A place where everything has been computed already; notes when it was asked and when it had told all."""

    results: Path
    aside: Path
    began: float = 0.0
    ended: float = 0.0
    told: list[float] = field(default_factory=list)
    processor_seconds: float = 0.0

    def machine(self, asked: Resources | None = None) -> Machine:
        """64 GPUs."""
        return MACHINE

    def run(self, context: dg.AssetExecutionContext, job: Job) -> Generator[Event, None, None]:
        """Put the results there, and say so."""
        self.aside.rename(self.results)
        self.began, began = time.perf_counter(), time.process_time()
        for number, task in enumerate(job.tasks):
            yield Finished(task=task.name, number=number, seconds=0.0)
            self.told.append(time.perf_counter())
        self.ended, self.processor_seconds = time.perf_counter(), time.process_time() - began


_INSTANT: list[Instant] = []


class InstantLaboratory(Laboratory):
    """Its jobs run there."""

    def place(self) -> Place:
        """The latest made."""
        return _INSTANT[-1]


def drive(root: Path, study: Study, instance: dg.DagsterInstance) -> tuple[float, list[float], float, float]:
    """Materialise ``curvature``: seconds before the job, of each partition, after it; of the processor for all."""
    results = root / "tables" / "per_image_curvature"
    aside = root / "aside"
    if results.exists():
        results.rename(aside)
    shutil.rmtree(root / "tables" / "curvature", ignore_errors=True)
    _INSTANT.append(place := Instant(results, aside))
    assets = [CURVATURE_ASSETS.driver({study.name: study})]
    began = time.perf_counter()
    result = dg.materialize(
        assets,
        resources={"laboratory": InstantLaboratory(root=str(root))},
        instance=instance,
        run_config={"loggers": {"console": {"config": {"log_level": "ERROR"}}}},
    )
    if not result.success:
        raise RuntimeError("the run failed")
    ended = time.perf_counter()
    return (
        place.began - began,
        np.diff([place.began, *place.told]).tolist(),
        ended - place.ended,
        place.processor_seconds,
    )


@contextlib.contextmanager
def postgresql(folder: Path) -> Iterator[dg.DagsterInstance | None]:
    """Dagster's storage in a server of our own, or None where there is no PostgreSQL."""
    binaries = Path(os.path.realpath(shutil.which("pg_ctl") or "/none/pg_ctl")).parent
    if not (binaries / "initdb").exists():
        yield None
        return
    folder.mkdir()
    user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.getuid() == 0 else []
    if user:
        shutil.chown(folder, "postgres")
        folder.parent.chmod(0o755)
    run = functools.partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
    data, address = folder / "data", f"-k {folder} -c listen_addresses=''"
    run([*user, binaries / "initdb", "-D", data, "-U", "dagster", "--auth=trust"])
    run([*user, binaries / "pg_ctl", "-D", data, "-o", address, "-w", "-l", folder / "log", "start"])
    try:
        url = f"postgresql+psycopg2://dagster@/postgres?host={folder}"
        home = folder / "home"
        home.mkdir()
        settings = {"storage": {"postgres": {"postgres_url": url}}, "telemetry": {"enabled": False}}
        (home / "dagster.yaml").write_text(json.dumps(settings), encoding="utf-8")
        with dg.DagsterInstance.from_config(str(home)) as instance:
            yield instance
    finally:
        run([*user, binaries / "pg_ctl", "-D", data, "-m", "immediate", "stop"])


def seconds(run: Callable[[], object], repeats: int = 3) -> float:
    """Median, of the processor, so that others on it hardly count."""
    measured = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        measured.append(time.process_time() - began)
    return statistics.median(measured)


def pieces(root: Path, study: Study) -> dict[str, float]:
    """Seconds of what the orchestrator and pods do with all partitions, by what it is."""
    store, studies = Store(root), {study.name: study}
    chosen = [(study, checkpoint) for checkpoint in study.iter_checkpoints()]
    work = [(study.name, checkpoint) for _, checkpoint in chosen]
    job = result_job("per_image_curvature", root, studies, work, 8, 8)
    whole = divided(job, MACHINE)
    folder = JobFolder.of(store, whole)
    folder.prepare(whole)
    found = {
        "which are trained": seconds(lambda: trained_checkpoints(store, study)),
        "which lack curvature": seconds(lambda: CheckpointResult(CURVATURE_ASSETS.kind).missing(store, chosen)),
        "digest of the request": seconds(lambda: CheckpointResult(CURVATURE_ASSETS.kind)._request(chosen)),
        "job": seconds(lambda: result_job("per_image_curvature", root, studies, work, 8, 8)),
        "division among 64 GPUs": seconds(lambda: divided(job, MACHINE)),
        "job file written": seconds(lambda: folder.prepare(whole)),
        "job file read": seconds(folder.read_job),
    }
    for number, task in enumerate(whole.tasks):
        path = folder.path / "outcomes" / f"{number}.json"
        path.parent.mkdir(exist_ok=True)
        event = Finished(task=task.name, number=number, seconds=1.0)
        path.write_text(event.to_json(), encoding="utf-8")
    known = set(range(len(whole.tasks)))
    found["outcomes read (each pod's start)"] = seconds(folder.outcomes)
    found["outcomes looked for (each poll)"] = seconds(lambda: folder.outcomes(known))
    folder.remove()
    meter, recorder = _Meter(job), PartitionRecorder(None, store, study, [c for _, c in chosen])  # type: ignore[arg-type]
    for task in job.tasks:
        meter.update(Finished(task=task.name, seconds=1.0))
    last = Finished(task=job.tasks[0].name, seconds=1.0)

    def progress() -> float:
        meter.update(last)
        return meter.fraction

    found["progress, for each event, x 1000"] = 1000 * seconds(progress, 101)
    nothing = CheckpointWritten(task="none", epoch=-1)
    found["a checkpoint's event, x 1000"] = 1000 * seconds(lambda: recorder.on_event(nothing), 31)
    found["views rebuilt"] = seconds(lambda: refresh(store))
    found["connection with views"] = seconds(lambda: connect(store).close())
    return found


def report(quick: bool) -> dict[str, float]:
    """Print; milliseconds per partition by key."""
    ratios: dict[str, float] = {}
    columns: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for num in (200, 1000) if quick else (1000, 10_000):
            study, root = study_of(num), Path(name) / str(num)
            lay_out(root, study)
            home = Path(name) / f"dagster-{num}"
            home.mkdir()
            with dg.DagsterInstance.local_temp(str(home)) as instance:
                ratios |= _driven(f"sqlite_{num}", f"{num:,} partitions, SQLite", drive(root, study, instance))
            if num == 1000:
                with postgresql(Path(name) / "postgresql") as server:
                    if server is None:
                        print("There is no PostgreSQL here, so events in it are not measured.")
                    else:
                        ratios |= _driven(
                            f"postgresql_{num}", f"{num:,} partitions, PostgreSQL", drive(root, study, server)
                        )
            columns[num] = pieces(root, study)
    print("\nPieces, processor s" + " " * 20 + "".join(f"{num:>10,d}" for num in columns) + f"{'exponent':>10s}")
    (few, first), (many, last) = columns.items()
    for what, value in last.items():
        exponent = np.log(value / first[what]) / np.log(many / few)
        print(f"   {what:36s}{first[what]:10.3f}{value:10.3f}{exponent:10.2f}")
    return ratios


def _driven(key: str, name: str, measured: tuple[float, list[float], float, float]) -> dict[str, float]:
    """Print what a run took; its ratios."""
    before, of_each, after, processor = measured
    tenth = max(1, len(of_each) // 10)
    first, last = (1000 * statistics.mean(part) for part in (of_each[:tenth], of_each[-tenth:]))
    mean = 1000 * statistics.mean(of_each)
    print(f"{name}: {before:.1f} s before the job, {sum(of_each):.1f} s of events, {after:.1f} s after it: ", end="")
    each = 1000 / len(of_each)
    print(f"{mean:.1f} ms a partition ({first:.1f} in the first tenth, {last:.1f} in the last), ", end="")
    print(f"{processor * each:.1f} of them of this processor   ({load_average()})", flush=True)
    return {f"{key}_ms": mean, f"{key}_before_ms": before * each, f"{key}_after_ms": after * each}
