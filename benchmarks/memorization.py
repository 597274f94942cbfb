"""Scores of memorisation: how long 50,000 images x 200 evaluations take, and how the published way of scoring compares.

    python benchmarks/memorization.py [--images 50000] [--evaluations 200] [--trials 8]

The published way is that of CSL-Mem: every checkpoint of every network is loaded again, all images go through it in
batches of 256, and a backward pass gives the gradient in the images. Ours records the same numbers while it trains, all
trials in one network, and reads them back from the tables. Both score the same networks on the same images; what ours
costs is the time that the recorded evaluations add to the training, and that of reading and scoring. All times are
processor time of this process, on one thread, so that others on the machine hardly count.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

from dd_core.curvature.trained import standardised, trained_network
from dd_core.data.trials import trial_data
from dd_core.results.image_curves import Sources, curves_of
from dd_core.results.memorization import rebuild
from dd_core.results.memorization_scores import ArmScores, Probes, detection_rows, score_rows
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.files import read_parquet, to_arrow, write_parquet
from dd_core.training.train import train_arm


def study_of(epochs: int, trials: int, every: int, **changes: Any) -> Study:
    """Networks of k = 4 on 1,000 digits, a checkpoint for each epoch."""
    recipe = {
        "architecture": "preact_resnet10",
        "label_noise": 0.1,
        "batch_size": 100,
        "optimizer": {"name": "adam", "learning_rate": 2e-3},
    }
    content = {
        "name": "benchmark",
        "description": "made for the benchmark",
        "data": {"dataset": "digits", "num_train": 1000},
        "variants": {"plain": recipe},
        "widths": (4,),
        "trials": trials,
        "epochs": epochs,
        "checkpoints": tuple(range(1, epochs + 1)),
        "evaluation": {"every": every, "image_values": ("gradient_norm",)},
        **changes,
    }
    return Study.model_validate(content)


def score_many(num_images: int, num_evaluations: int) -> None:
    """Tables of that size, made up, read and scored."""
    study = study_of(num_evaluations, 1, 1)
    arm, random = study.arms["plain.k004"], np.random.default_rng(0)
    folder = Path(tempfile.mkdtemp())
    labels = random.integers(10, size=num_images)
    given = np.where(random.random(num_images) < 0.1, (labels + 1) % 10, labels)
    common = {"variant": "plain", "trial": 0, "image_id": np.arange(num_images)}
    about = {"split": "train", "true_label": labels, "given_label": given, "is_noisy": labels != given}
    images = {**common, **about, **dict.fromkeys(("copy_of", "duplicate", "class_rank"))}
    known = {column.name for column in _columns("images")}
    write_parquet(
        folder / "images.parquet", to_arrow("images", {n: v for n, v in images.items() if n in known}, num_images)
    )
    files = []
    for part in np.array_split(np.arange(1, num_evaluations + 1), 4):
        rows = len(part) * num_images
        columns = {
            "variant": "plain",
            "k": 4,
            "recipe": study.recipe_hash(arm),
            "trial": 0,
            "epoch": np.repeat(part, num_images),
            "image_id": np.tile(np.arange(num_images), len(part)),
            "split": "train",
            "loss": random.exponential(size=rows).astype(np.float32),
            "correct": random.random(rows) < 0.8,
            **{name: random.random(rows).astype(np.float32) for name in ("margin", "el2n", "gradient_norm")},
        }
        files.append(folder / f"{part[-1]:04d}.parquet")
        write_parquet(files[-1], to_arrow("image_progress", columns, rows))
    started, found = time.process_time(), ArmScores(study, arm)
    for curves in curves_of(study, arm, Sources(files, [], folder / "images.parquet", [])):
        found.add(curves, Probes())
    score_rows(found)
    scored = time.process_time() - started
    detection_rows(found)
    print(f"{num_images:,} images x {num_evaluations} evaluations: read and scored in {scored:.1f} s (wanted: 20 s), "
          f"areas in {time.process_time() - started - scored:.1f} s more")  # fmt: skip


def _columns(table: str) -> Any:
    from dd_core.tables.files import TABLES

    return TABLES[table].file_columns


def published_way(store: Store, study: Study) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative sample loss and summed input-gradient norms, (trials, images), a network and a batch at a time."""
    csl = np.zeros((study.trials, study.num_train_images))
    sensitivity = np.zeros_like(csl)
    arm = study.arms["plain.k004"]
    for epoch in study.checkpoints:
        weights, _ = load_checkpoint(store, study, Checkpoint(arm, epoch))
        for trial in range(study.trials):
            data = trial_data(study, "plain", trial)
            images = standardised(study, data, data.train_ids, torch.device("cpu"), torch.float32)
            model = trained_network(study, Checkpoint(arm, epoch), weights, trial)
            start = 0
            for batch, labels in DataLoader(TensorDataset(images, torch.from_numpy(data.train_labels)), 256):
                losses = cross_entropy(model(batch.requires_grad_()), labels, reduction="none")
                (gradient,) = torch.autograd.grad(losses.sum(), batch)
                stop = start + len(batch)
                csl[trial, start:stop] += losses.detach().numpy()
                sensitivity[trial, start:stop] += gradient.flatten(1).norm(dim=1).numpy()
                start = stop
    return csl, sensitivity


def compare(trials: int, epochs: int) -> None:
    """The published way against ours."""
    torch.set_num_threads(1)
    arm = study_of(epochs, trials, 1).arms["plain.k004"]
    seconds = {}
    # Every training writes the same checkpoints, which are always evaluated: without values, only one at the end.
    plain = study_of(epochs, trials, epochs, checkpoints=(epochs,), evaluation={"every": epochs})
    study = study_of(epochs, trials, 1, checkpoints=(epochs,))
    for name, one in (("plain", plain), ("recorded", study)):
        store = Store(tempfile.mkdtemp())
        started = time.process_time()
        train_arm(one, arm, store, until=epochs)
        seconds[name] = time.process_time() - started
    with_all = study_of(epochs, trials, 1)
    store = Store(tempfile.mkdtemp())
    train_arm(with_all, arm, store, until=epochs)
    started = time.process_time()
    rebuild(store, with_all)
    seconds["scored"] = time.process_time() - started
    started = time.process_time()
    csl, sensitivity = published_way(store, with_all)
    seconds["published"] = time.process_time() - started
    table = read_parquet(next(store.table_folder("memorization").glob("*/*/analysis.parquet")))
    differences = [
        np.abs(table[name].to_numpy().reshape(trials, -1) / theirs - 1).max()
        for name, theirs in (("csl", csl), ("loss_sensitivity", sensitivity))
    ]
    ours = seconds["recorded"] - seconds["plain"] + seconds["scored"]
    print(f"{trials} networks x {epochs} epochs x 1,000 digits: published way {seconds['published']:.1f} s; ours "
          f"{ours:.1f} s ({seconds['recorded'] - seconds['plain']:.1f} s in training, {seconds['scored']:.1f} s for "
          f"all scores, areas and intervals): {seconds['published'] / ours:.1f} times as fast")  # fmt: skip
    print(f"largest relative difference: csl {differences[0]:.1e}, loss sensitivity {differences[1]:.1e}")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--evaluations", type=int, default=200)
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    score_many(options.images, options.evaluations)
    compare(options.trials, options.epochs)


if __name__ == "__main__":
    main()
