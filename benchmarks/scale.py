"""SQL and lists at scale: a hundred million rows of ``training_batches``, ten thousand checkpoints, 200 studies.

The data root is made, not trained: a study of 100 arms with 5 trials, 4,000 epochs of 50 steps and a checkpoint every
40 epochs, and beside it the shipped quickstart. Every checkpoint has what training and the curvature of images leave
of it, written by the product's own writers: a file in each of five tables, and manifests that vouch for them. Values
are drawn at random with 11 bits each, weights are a few bytes, an image table has 200 images instead of 50,000, and
nothing is flushed to disk: otherwise the disk of a laptop would not do.

1. ``sql``: the time to have the views (``warehouse.duckdb``, and a connection of ``dd_core.open``), what the large
   study has found, and every query of README.md and docs/queries.md, warm: as it is written, and asked of that study.
2. ``list``: ``dagster asset list`` with as many study files.
``--root`` keeps the data root there, or takes the one that is there; ``--share 0.01`` makes a hundredth of the arms.
"""

import argparse
import functools
import multiprocessing
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from common import load_average, write_json

from dd_assets.catalogue import catalogue
from dd_core.store import checkpoints, files
from dd_core.store.files import write_text
from dd_core.store.manifests import Manifest
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.columns import Table
from dd_core.tables.files import TABLES, to_arrow, write_parquet, write_result
from dd_core.tables.kinds import PER_IMAGE_CURVATURE

HERE = Path(__file__).parent
LARGE = "campaign"
STEPS, IMAGES = 50, 200
METRICS = ("gradient_norm", "weight_norm")


def large_study(share: float) -> Study:
    """A hundred arms, or a share of them."""
    variant = {
        "architecture": "resnet18",
        "batch_size": 1000,
        "label_noise": 0.2,
        "optimizer": {"name": "sgd", "learning_rate": 0.1},
        "schedule": {"name": "constant"},
    }
    content = {
        "name": LARGE,
        "description": "A study as large as any.",
        "data": {"dataset": "cifar10"},
        "variants": {f"variant-{number}": variant for number in range(max(1, round(10 * share**0.5)))},
        "widths": tuple(range(1, max(1, round(10 * share**0.5)) + 1)),
        "trials": 5,
        "epochs": 4000,
        "checkpoints": tuple(range(40, 4001, 40)),
    }
    return Study.model_validate(content)


def lay_out(store: Store, studies: list[Study], processes: int) -> str:
    """Write everything, an arm at a time; what is there stays."""
    arms = [(study, arm) for study in studies for arm in study.arms.values()]
    with ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        list(pool.map(functools.partial(_write_arm, store), *zip(*arms, strict=True)))
    paths = list(store.root.glob("tables/**/*.parquet"))
    return f"{len(paths):,} files of tables, {sum(path.stat().st_size for path in paths) / 1e9:.2f} GB"


def _write_arm(store: Store, study: Study, arm: Arm) -> None:
    if store.table_folder("runs", study.name, arm.key).is_dir():  # comes last
        return
    checkpoints.fingerprint = lambda dataset: "simulated"  # no data set is here
    files.flush = lambda path: None
    begun = 0
    for epoch in study.checkpoints:
        _write_checkpoint(store, study, Checkpoint(arm, epoch), range(begun + 1, epoch + 1))
        begun = epoch
    draw = np.random.default_rng(arm.k)
    summary = ("all", "clean", "noisy")
    epochs = np.repeat(study.checkpoints, len(summary) * study.trials)
    rows = {"epoch": epochs, "subset": np.resize(summary, len(epochs)), "trial": _trials(study, len(epochs))}
    _write_alone(store, study, arm, "curvature", "summary", draw, rows)
    for table in ("loss_slopes", "loss_slope_fits"):
        _write_alone(store, study, arm, table, "analysis", draw, {"trial": np.arange(study.trials), "segment": "whole"})
    ids = np.tile(np.arange(IMAGES), study.trials)
    noisy = ids % 5 == 0
    columns = {"variant": arm.variant, "trial": _trials(study, len(ids)), "image_id": ids, "is_noisy": noisy}
    path = store.table_folder("images", study.name) / f"{arm.variant}.parquet"
    write_result(store, path, drawn(TABLES["images"], len(ids), {**columns, "split": "train"}, draw))
    run = {"trial": np.arange(study.trials), "attempt": 1, "status": "finished", "grid": None}
    _write_alone(store, study, arm, "runs", "attempt-0001.end", draw, run)


def _trials(study: Study, num_rows: int) -> np.ndarray:
    return np.repeat(np.arange(study.trials), num_rows // study.trials)


def _common(study: Study, arm: Arm) -> dict[str, Any]:
    return {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}


def _write_alone(
    store: Store, study: Study, arm: Arm, table: str, part: str, draw: np.random.Generator, rows: Mapping[str, Any]
) -> None:
    """A file with a manifest of its own."""
    num_rows = len(rows["trial"])
    path = store.table_folder(table, study.name, arm.key) / f"{part}.parquet"
    write_result(store, path, drawn(TABLES[table], num_rows, {**_common(study, arm), **rows}, draw))


def _write_checkpoint(store: Store, study: Study, checkpoint: Checkpoint, epochs: range) -> None:
    """Weights, four tables of training, the curvature of images, and both manifests."""
    from dd_core.results.by_trial import described
    from dd_core.results.by_trial import write_result as write_result_of_checkpoint

    arm, trials, draw = checkpoint.arm, study.trials, np.random.default_rng([checkpoint.arm.k, checkpoint.epoch])
    of_batches, of_epochs = np.repeat(epochs, STEPS), np.asarray(epochs)
    steps = np.arange(len(of_batches)) + STEPS * (epochs.start - 1) + 1
    tables: dict[str, dict[str, Any]] = {
        "training_batches": {"epoch": of_batches, "step": steps, "time": 1.7e9 + steps / 16},
        "training_evals": {"epoch": of_epochs, "step": STEPS * of_epochs},
        "training_monitors": {
            "epoch": np.tile(of_epochs, len(METRICS)),
            "step": STEPS * np.tile(of_epochs, len(METRICS)),
            "metric": np.repeat(METRICS, len(epochs)),
        },
        "image_progress": {
            **{"epoch": np.full(IMAGES, checkpoint.epoch), "image_id": np.arange(IMAGES), "split": "train"},
            "correct": draw.random(IMAGES) < checkpoint.epoch / study.epochs,
        },
    }
    written = {}
    for name, columns in tables.items():
        if num_rows := trials * len(columns["epoch"]):
            every = {n: value if np.ndim(value) == 0 else np.tile(value, trials) for n, value in columns.items()}
            every |= {**_common(study, arm), "trial": _trials(study, num_rows)}
            path = store.table_folder(name, study.name, arm.key) / f"{checkpoint.epoch:04d}.parquet"
            write_parquet(path, drawn(TABLES[name], num_rows, every, draw))
            written[name] = (path, num_rows)
    weights = store.checkpoint_path(study.name, checkpoint)
    write_text(weights, f"{study.name}/{checkpoint.key}")
    headline = {"test_error": 0.1, "test_loss": 0.3, "train_error": 0.0, "train_loss": 0.1}
    checkpoints.save_checkpoint(store, study, checkpoint, {"weights": weights}, written, headline, "cpu", {})
    of_weights = store.read_manifest(store.checkpoint_manifest_path(study.name, checkpoint))
    assert isinstance(of_weights, Manifest)
    kind, ids = PER_IMAGE_CURVATURE, np.tile(np.arange(IMAGES), trials)
    rows = {**_common(study, arm), "epoch": checkpoint.epoch, "trial": _trials(study, len(ids)), "image_id": ids}
    about = described(kind, study, checkpoint, of_weights, kind.settings(study, checkpoint.epoch))
    values = columns_drawn(kind.table, len(ids), {**rows, "method": "exact"}, draw)
    write_result_of_checkpoint(kind, store, study, checkpoint, values, len(ids), about)


def drawn(table: Table, num_rows: int, known: Mapping[str, Any], draw: np.random.Generator) -> Any:
    """Rows of a table: what is known of a column, of the others random floats, zeros and one word."""
    return to_arrow(table, columns_drawn(table, num_rows, known, draw), num_rows)


def columns_drawn(table: Table, num_rows: int, known: Mapping[str, Any], draw: np.random.Generator) -> dict[str, Any]:
    """The columns of that by name."""
    constants = {"string": "plain", "timestamp": None, "bool": False}
    found = {}
    for column in table.file_columns:
        if column.name in known:
            found[column.name] = known[column.name]
        elif column.name in ("learning_rate", "weight_decay"):
            found[column.name] = 0.1
        elif column.type.startswith("float"):
            found[column.name] = draw.lognormal(size=num_rows).astype(np.float16).astype(float)
        else:
            found[column.name] = constants.get(column.type, None if column.type.startswith("list") else 0)
    return found


def queries() -> dict[str, str]:
    """The SQL of README.md and docs/queries.md, by the question that stands above it."""
    found = {}
    for path in (HERE.parent / "README.md", HERE.parent / "docs" / "queries.md"):
        for above, text in re.findall(r"([^\n]*)\n+```sql\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            found[f"{path.name}: {above}"[:72]] = text
    return found


def asked_of_large(query: str) -> str:
    """The query asked of the large study, at its last epoch."""
    query = re.sub(r"'(quickstart|incremental_digits|mislabelled_digits|nsm_published)'", f"'{LARGE}'", query)
    return query.replace("epoch = 120", "epoch = 4000")


def sql(store: Store, large: Study) -> dict[str, float]:
    """The views and the findings, then every query."""
    import dd_core
    from dd_core.reports.findings import findings
    from dd_core.tables.warehouse import refresh

    found = {}
    for moment in ("first", "again"):
        found[f"refresh_{moment}"] = timed(f"warehouse.duckdb rebuilt, {moment}", functools.partial(refresh, store))
    lab = dd_core.open(store.root)
    for moment in ("first", "again"):
        found[f"connect_{moment}"] = timed(f"lab.sql('SELECT 1'), {moment}", lambda: lab.sql("SELECT 1").fetchall())
    found["findings"] = timed("findings of the large study", functools.partial(findings, store, large))
    print(f"\n{'':74s}{'as written':>12s}{'large study':>13s}  (s, warm: median of 3)")
    slowest = [0.0, 0.0]
    for question, query in queries().items():
        both = [_warm(store, text) for text in (query, asked_of_large(query))]
        slowest = [max(pair) for pair in zip(slowest, both, strict=True)]
        print(f"{question:74s}{both[0]:12.2f}{both[1]:13.2f}", flush=True)
    return {**found, "query_as_written": slowest[0], "query_of_large_study": slowest[1]}


def _warm(store: Store, query: str) -> float:
    """Median of three in a connection that has answered it once, as in DuckDB's shell."""
    import duckdb

    with duckdb.connect(str(store.warehouse_path), read_only=True) as connection:
        seconds = []
        for _ in range(4):
            began = time.perf_counter()
            connection.execute(query).fetchall()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def timed(what: str, piece: Callable[[], object]) -> float:
    """Print wall and processor seconds of a piece; returns the former."""
    began, used = time.perf_counter(), os.times()
    piece()
    wall, now = time.perf_counter() - began, os.times()
    processor = sum(now[:4]) - sum(used[:4])
    print(f"{what:74s}{wall:12.2f}{processor:13.2f}", flush=True)
    return wall


def write_studies(folder: Path, number: int) -> None:
    """Study files, each the quickstart's under another name."""
    text = (Path(catalogue.__code__.co_filename).parent / "studies" / "quickstart.yaml").read_text(encoding="utf-8")
    for count in range(number):
        (folder / f"study_{count:03d}.yaml").write_text(text, encoding="utf-8")


def asset_list(store: Store, number: int) -> dict[str, float]:
    """``dagster asset list`` with so many study files more, by the shipped ones alone, and the second time."""
    found = {}
    with tempfile.TemporaryDirectory() as studies:
        for more in (0, number):
            write_studies(Path(studies), more)
            environment = {**os.environ, "DD_STUDIES": studies, "DD_ROOT": str(store.root)}
            environment["DAGSTER_MODULE_NAME"] = "dd_assets.definitions"
            environment["DAGSTER_HOME"] = str(store.root / "dagster")
            Path(environment["DAGSTER_HOME"]).mkdir(exist_ok=True)
            command = [str(Path(sys.executable).with_name("dagster")), "asset", "list"]
            run = functools.partial(subprocess.run, command, env=environment, check=True, capture_output=True)
            run()
            what = f"dagster asset list with {more} studies more"
            found[f"asset_list_{more}"] = timed(what, functools.partial(run))
    return found


def main() -> None:
    """Make or take the data root, run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the hundred arms; the default is all")
    parser.add_argument("--studies", type=int, default=200, help="study files for `dagster asset list`")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that write the data root")
    parser.add_argument("--root", type=Path, help="the data root to make, or to take as it is, and to keep")
    parser.add_argument("--only", choices=("write", "sql", "list"))
    parser.add_argument("--json", type=Path, help='write {"ratios": {name: seconds}, ...} to this file')
    arguments = parser.parse_args()
    root = arguments.root or Path(tempfile.mkdtemp())
    store = Store(root.absolute())
    studies = [large_study(arguments.share), catalogue().studies["quickstart"]]
    try:
        print(f"{'':74s}{'wall s':>12s}{'processor s':>13s}  ({load_average()})")
        timed("written", lambda: print(lay_out(store, studies, arguments.processes)))
        parts: dict[str, Callable[[], dict[str, float]]] = {
            "sql": lambda: sql(store, studies[0]),
            "list": lambda: asset_list(store, arguments.studies),
        }
        found: dict[str, float] = {}
        for name, part in parts.items():
            if arguments.only in (None, name):
                print(f"\n== {name}", flush=True)
                found |= part()
    finally:
        if arguments.root is None:
            shutil.rmtree(root)
    write_json(arguments.json, {f"scale_{name}": seconds for name, seconds in found.items()})


if __name__ == "__main__":
    main()
