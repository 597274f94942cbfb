"""A hundred million rows: per-image curvature at every epoch of class-incremental training on CIFAR-100, simulated.

Epochs 0 to 4000 have a checkpoint each; five classes of 500 images are added every 200 epochs, so that 4,001 files hold
105 million rows. They and their manifests are written as the product writes them; the values are drawn at random, the
weights are a few bytes, and no image is read. Five columns of floats have 13 random bits a value instead of 53, so that
a small disk is enough: with all bits the files would be about twice as large.

Timed are planning (what lacks a result, its division over nodes), checking (SHA-256 of every file), the views, and SQL
as people ask it: one epoch, and an aggregate over all. ``cold`` is the first time in a connection, ``warm`` the second;
all files are in the memory of the operating system where they fit. Each piece has a new process, as in the product.
"""

import contextlib
import functools
import multiprocessing
import resource
import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import duckdb
import numpy as np
from common import load_average

from dd_core.jobs.division import divided
from dd_core.jobs.job import result_job
from dd_core.machine.devices import Machine
from dd_core.results.by_trial import described, write_result
from dd_core.store import checkpoints
from dd_core.store.manifests import Manifest
from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.damage import damaged_files
from dd_core.tables.kinds import PER_IMAGE_CURVATURE
from dd_core.tables.warehouse import connect, refresh

CLASSES, OF_CLASS, EVERY = 100, 500, 200
MACHINE = Machine("simulated", 8, 64, None, 8)
_RANDOM = ("loss", "gradient_norm", "trace")
_COARSE = ("probability", "gradient_curvature", "trace_standard_error", "frobenius_norm", "largest_eigenvalue")
_CONSTANT = ("frobenius_norm_standard_error", "largest_eigenvalue_residual")


def study_of(step: int) -> Study:
    """Every so many epochs of 4,000 a checkpoint, from the initialisation on."""
    variant = {
        "architecture": "resnet18",
        "batch_size": 100,
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "schedule": {"name": "constant"},
    }
    content = {
        "name": "incremental",
        "description": "every epoch of class-incremental training",
        "data": {"dataset": "cifar100", "classes": {"first": 5, "add": 5, "every": EVERY}},
        "variants": {"plain": variant},
        "widths": (64,),
        "trials": 1,
        "epochs": 4000,
        "checkpoints": tuple(range(0, 4001, step)),
    }
    return Study.model_validate(content)


def num_rows(study: Study, epoch: int) -> int:
    """Images of the classes seen by then."""
    assert study.data.classes is not None
    return OF_CLASS * study.data.classes.evaluated(epoch, CLASSES)


def lay_out(store: Store, study: Study) -> str:
    """Write all checkpoints and results, with every core."""
    epochs = list(study.checkpoints)
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(functools.partial(_write, store, study), [epochs[start::64] for start in range(64)]))
    sizes = [file.stat().st_size for file in store.root.glob("tables/**/*.parquet")]
    rows = sum(num_rows(study, epoch) for epoch in epochs)
    return f"{rows:,} rows in {len(sizes):,} files of {sum(sizes) / 1e9:.2f} GB"


def _write(store: Store, study: Study, epochs: list[int]) -> None:
    checkpoints.fingerprint = lambda dataset: "simulated"  # no data set is here
    wanted = set(epochs)
    for checkpoint in study.iter_checkpoints():
        if checkpoint.epoch in wanted:
            _write_result(store, study, checkpoint, _write_weights(store, study, checkpoint))


def _write_weights(store: Store, study: Study, checkpoint: Checkpoint) -> Manifest:
    path = store.checkpoint_path(study.name, checkpoint)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(checkpoint.epoch.to_bytes(8, "little"))
    about = described(PER_IMAGE_CURVATURE, study, checkpoint, Manifest({}, {}), {})
    place = store.checkpoint_manifest_path(study.name, checkpoint)
    store.write_manifest(place, {**about, "kind": "checkpoint"}, {"weights": path})
    manifest = store.read_manifest(place)
    assert manifest is not None
    return manifest


def _write_result(store: Store, study: Study, checkpoint: Checkpoint, weights: Manifest) -> None:
    rows, epoch, arm = num_rows(study, checkpoint.epoch), checkpoint.epoch, checkpoint.arm
    schedule = study.data.classes
    assert schedule is not None
    draw = np.random.default_rng(epoch)
    labels = np.repeat(np.arange(rows // OF_CLASS), OF_CLASS)
    columns = {
        **{"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm), "epoch": epoch, "trial": 0},
        **{"image_id": np.random.default_rng(0).permutation(CLASSES * OF_CLASS)[:rows]},
        **{"true_label": labels, "given_label": labels, "is_noisy": False, "method": "double_backward"},
        **{name: draw.lognormal(size=rows) for name in _RANDOM},
        **{name: draw.lognormal(size=rows).astype(np.float16).astype(float) for name in _COARSE},
        **dict.fromkeys(_CONSTANT, 0.0),
        **{"num_seen_classes": schedule.seen(epoch, CLASSES), "num_active_classes": schedule.active(epoch, CLASSES)},
    }
    kind = PER_IMAGE_CURVATURE
    about = described(kind, study, checkpoint, weights, kind.settings(study, epoch))
    write_result(kind, store, study, checkpoint, columns, rows, about)


def missing(store: Store, study: Study) -> str:
    """Plan: what lacks a result, as many as there are in all and none of it."""
    return f"{len(PER_IMAGE_CURVATURE.missing(store, study)):,} of {len(study.checkpoints):,} checkpoints"


def trained(store: Store, study: Study) -> str:
    """Plan: which checkpoints there are."""
    return f"{len(trained_checkpoints(store, study)):,} checkpoints"


def job(store: Store, study: Study) -> str:
    """Plan: one job of all, divided over 8 nodes with 8 GPUs."""
    work = [(study.name, checkpoint) for checkpoint in study.iter_checkpoints()]
    whole = divided(result_job(PER_IMAGE_CURVATURE.name, store.root, {study.name: study}, work, 8, 8), MACHINE)
    shares = [len(place) for place in whole.places]
    return f"{len(whole.tasks):,} tasks, {min(shares)} to {max(shares)} for each of {len(shares)} nodes"


def sound(store: Store, study: Study) -> str:
    """Check: every result against its manifest."""
    manifests = PER_IMAGE_CURVATURE.manifests(store, study, study.iter_checkpoints()).values()
    return f"{sum(own is not None and store.is_sound(own) for own in manifests):,} sound"


def damaged(store: Store, study: Study) -> str:
    """Check: look for damage in every table."""
    return f"{len(damaged_files(store)):,} damaged files"


def views(store: Store, study: Study) -> str:
    """SQL: build the file of views, which looks for damage too."""
    return f"views of {len(refresh(store))} table"


def connection(store: Store, study: Study) -> str:
    """SQL: views in memory, which looks for damage too."""
    connect(store).close()
    return "for one process"


PIECES: dict[str, Callable[[Store, Study], str]] = {
    "which are trained": trained,
    "which lack a result": missing,
    "job, divided": job,
    "every result sound": sound,
    "damage in all tables": damaged,
    "views built": views,
    "connection with views": connection,
}
ONE = "SELECT count(*), avg(trace), max(loss) FROM per_image_curvature WHERE epoch = ?"
ALL = "SELECT epoch, count(*), avg(trace), stddev(loss) FROM per_image_curvature GROUP BY epoch ORDER BY epoch"


def timed(what: str, piece: Callable[[], str]) -> float:
    """Print wall and processor seconds of a piece, with what it says; returns the former."""
    began, used = time.perf_counter(), _processor_seconds()
    said = piece()
    wall = time.perf_counter() - began
    print(f"   {what:34s}{wall:9.2f}{_processor_seconds() - used:13.2f}   {said}", flush=True)
    return wall


def _processor_seconds() -> float:
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def report(quick: bool) -> dict[str, float]:
    """Print; wall seconds by key."""
    study, found = study_of(20 if quick else 1), dict[str, float]()
    folder = Path(tempfile.mkdtemp())
    store = Store(folder)
    print(f"{'':37s}{'wall s':>9s}{'processor s':>13s}   ({load_average()})")
    try:
        found["written"] = timed("written", functools.partial(lay_out, store, study))
        for what, piece in PIECES.items():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
                found[what] = pool.submit(timed, what, functools.partial(piece, store, study)).result()
        with contextlib.closing(duckdb.connect(str(store.warehouse_path), read_only=True)) as views:
            middle = study.checkpoints[len(study.checkpoints) // 2]
            for query, values, what in ((ONE, [middle], "one epoch"), (ALL, [], "an aggregate over all")):
                for state in ("cold", "warm"):
                    asked = functools.partial(_ask, views, query, values)
                    found[f"{what} {state}"] = timed(f"{what}, {state}", asked)
    finally:
        shutil.rmtree(folder)
    return {f"rows_{what.replace(' ', '_').replace(',', '')}": seconds for what, seconds in found.items()}


def _ask(views: duckdb.DuckDBPyConnection, query: str, values: list[int]) -> str:
    """From the file of views, as a program beside the platform does."""
    return f"{len(views.execute(query, values).fetchall()):,} rows"
