"""What the platform costs: the quickstart through Dagster against the same training and curvature called directly.

Ours is ``python -m dd_assets.run_study quickstart`` (``make quickstart`` after the set-up) in an empty data root, with
everything it does: two dagster commands, events, tables, warehouse, checks and figures. Direct is a pool of as many
processes, on the same cores, that calls ``train_arm`` and ``compute_curvature`` and nothing else. Ratio
``quickstart``: at most 1.15. With ``--quick`` a tenth of the study, where the fixed costs weigh ten times as much:
ratio ``small``.
"""

import functools
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from common import interleaved, median_ratio, parse_arguments, write_json

from dd_assets.catalogue import catalogue
from dd_core.jobs.worker import prepare_process
from dd_core.machine.devices import num_cores
from dd_core.store.store import Store
from dd_core.study.files import read_study
from dd_core.study.study import Arm, Checkpoint, Study

SMALL = """
description: a tenth of the quickstart
data: {dataset: digits, num_train: 1000}
variants:
  preact-resnet10:
    architecture: preact_resnet10
    label_noise: 0.2
    batch_size: 100
    optimizer: {name: adam, learning_rate: 2.0e-3}
    schedule: {name: cosine}
    augmentation: {shift_x: 1}
widths: [2, 4, 6]
trials: 2
epochs: 40
checkpoints: [0, 20, 40]
"""


def train(study: Study, root: Path, arm: Arm) -> None:
    """One arm."""
    from dd_core.training.train import train_arm

    train_arm(study, arm, Store(root), study.epochs)


def curve(study: Study, root: Path, checkpoint: Checkpoint) -> None:
    """One checkpoint."""
    from dd_core.results.per_image_curvature import compute_curvature

    compute_curvature(study, checkpoint, Store(root))


def direct(study: Study) -> None:
    """All arms, longest first, then all checkpoints."""
    arms = sorted(study.arms.values(), key=lambda arm: -arm.k)
    checkpoints = sorted(study.iter_checkpoints(), key=lambda checkpoint: -checkpoint.arm.k)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        with multiprocessing.get_context("spawn").Pool(num_cores(), initializer=prepare_process, initargs=(1,)) as pool:
            pool.map(functools.partial(train, study, root), arms, chunksize=1)
            pool.map(functools.partial(curve, study, root), checkpoints, chunksize=1)


def ours(study: Study, studies: str) -> None:
    """The command a user types."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder, "dagster")
        home.mkdir()
        settings = Path(__file__).parent.parent / "dd_assets" / "dagster.yaml"
        (home / "dagster.yaml").write_bytes(settings.read_bytes())
        environment = {**os.environ, "DD_ROOT": folder, "DAGSTER_HOME": str(home), "DD_STUDIES": studies}
        environment["DAGSTER_MODULE_NAME"] = "dd_assets.definitions"
        command = [sys.executable, "-m", "dd_assets.run_study", study.name]
        subprocess.run(command, env=environment, check=True, capture_output=True)


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    with tempfile.TemporaryDirectory() as studies:
        if arguments.quick:
            path = Path(studies, "small.yaml")
            path.write_text(SMALL, encoding="utf-8")
            study = read_study(path)
        else:
            study = catalogue().get("quickstart")
        seconds = interleaved(
            {"ours": lambda: ours(study, studies), "direct": lambda: direct(study)},
            repeats=arguments.repeats or (1 if arguments.quick else 5),
            warm_up=0,  # every repetition is new processes and an empty data root: there is nothing to warm up
        )
    for name, values in seconds.items():
        print(f"{name:8s} median {statistics.median(values):6.1f} s")
    median, low, high = median_ratio(seconds["ours"], seconds["direct"])
    print(
        f"ratio ours / direct: {median:.3f} ({low:.3f} to {high:.3f}); at most 1.15 is wanted for the whole quickstart"
    )
    write_json(arguments.json, {"small" if arguments.quick else "quickstart": median})


if __name__ == "__main__":
    main()
