"""What Figure 1 of Nakkiran et al. 2019 ("Deep Double Descent") costs with this trainer, from measured speeds.

64 widths of ResNet18k, 5 trials, 4000 epochs of 50,000 images: 64 billion images. The time of an image is taken to be
an overhead and its FLOPs (``dd_core.forecast.work``) over a rate; both are fitted by least squares of relative errors,
not below 0, and summed over the widths. The standard error is the jackknife's over the widths measured: of the fit
alone, not of what a width between two measured ones may have of its own. Training alone: evaluating all 60,000 images
every epoch would add up to 40 %.

Speeds come from ``--rates FILE`` (``python training.py --json FILE`` or ``results/DEVICE.json``, on a GPU), or from
``--root FOLDER`` (a data root: ``resource_probe``, where it knows ResNet18k on CIFAR, else ``runs``, whose times have
evaluations in them), or are measured here now. Hours are of a GPU, or without one of a CPU core. Beside them what a
public rerun with a plain PyTorch loop implies, which timed the same networks, data and batches on one B200
(github.com/HP2706/ATDL-Group-Work, reports of b200-2026-09-26 and complete-400-cifar10-noise20-2026-09-26 under
Assignment 2).
"""

import argparse
import contextlib
import itertools
import json
import tempfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from common import write_json
from scipy.optimize import nnls

from dd_assets.catalogue import catalogue
from dd_core.store.store import Store
from dd_core.study.architectures import forward_flops
from dd_core.study.study import Arm
from dd_core.tables.warehouse import connect

WIDTHS = range(1, 65)
IMAGES_PER_WIDTH = 5 * 4000 * 50_000
_CIFAR = ("cifar10", "cifar100")
EPOCHS = len(WIDTHS) * 5 * 4000
# Seconds of the B200 for an epoch of one network.
PUBLISHED = {
    "one at a time, widths 1 to 40": 2.48,
    "four at a time, k = 1 and 40": 227 / 160,
    "two at a time, k = 3 and 64": 1341 / 800,
}


@dataclass(frozen=True)
class Speed:
    """Seconds of one GPU or one core that a training image takes at width k."""

    k: int
    seconds: float
    trials: int


def flops(k: int) -> float:
    """FLOPs of training ResNet18k on one image of 32x32x3."""
    return 3.0 * forward_flops("preact_resnet18", k, (32, 32, 3), 10)


def fit(speeds: list[Speed]) -> tuple[float, float]:
    """Overhead in seconds, and seconds per FLOP."""
    largest = max(flops(speed.k) for speed in speeds)  # keeps both columns near 1
    system = np.array([[1 / s.seconds, flops(s.k) / largest / s.seconds] for s in speeds])
    (overhead, per_size), _ = nnls(system, np.ones(len(speeds)))
    return float(overhead), float(per_size) / largest


def hours(model: tuple[float, float], widths: range) -> float:
    """The sum over all trials and epochs of these widths."""
    return sum(model[0] + model[1] * flops(k) for k in widths) * IMAGES_PER_WIDTH / 3600


def interpolated(speeds: list[Speed]) -> float:
    """Hours of all widths from the logarithms of the times measured, for devices that the fit is not true of."""
    known = np.log([speed.k for speed in speeds]), np.log([speed.seconds for speed in speeds])
    return float(np.exp(np.interp(np.log(list(WIDTHS)), *known)).sum()) * IMAGES_PER_WIDTH / 3600


def jackknife_error(speeds: list[Speed]) -> float:
    """Standard error of the total (Efron & Tibshirani 1993, eq. 11.5)."""
    totals = np.array([hours(fit([s for s in speeds if s is not left]), WIDTHS) for left in speeds])
    return float(np.sqrt((len(totals) - 1) * totals.var()))


def from_rates(rows: list[dict[str, Any]]) -> dict[str, list[Speed]]:
    """Speeds by device and precision; of each width the row with most trials."""
    found: dict[str, dict[int, Speed]] = defaultdict(dict)
    for row in sorted(rows, key=lambda row: row["trials"]):
        if row["dataset"] in _CIFAR:
            speed = Speed(row["k"], row["num_devices"] / row["images_per_second"], row["trials"])
            found[f"{row['device']}, {row['precision']}"][row["k"]] = speed
    return {name: sorted(speeds.values(), key=lambda s: s.k) for name, speeds in found.items()}


def from_on_gpu(content: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows as ``training.py`` has them, from the results of ``on_gpu.py``."""
    device = content["machine"]["gpu"]
    return [
        {"dataset": "cifar10", "device": device, "num_devices": 1, "images_per_second": row["ours"]}
        | {key: row[key] for key in ("k", "trials", "precision")}
        for row in content["sections"]["training"]
        if "ours" in row
    ]


def from_root(root: Path) -> list[dict[str, Any]]:
    """Rows as ``training.py`` has them, from the tables of a data root."""
    with contextlib.closing(connect(Store(root))) as connection:
        views = {name for (name,) in connection.execute("SELECT view_name FROM duckdb_views()").fetchall()}
        probe = _probed(connection) if "resource_probe" in views else []
        return probe or (_trained(connection) if "runs" in views else [])


def _probed(connection: Any) -> list[dict[str, Any]]:
    """What the probe recommends; a CPU counts as so many cores as its workers have threads."""
    rows = connection.execute(
        """SELECT study, variant, k, recipe, device, num_workers * threads, samples_per_second
        FROM resource_probe WHERE recommended"""
    ).fetchall()
    studies, found = catalogue().studies, []
    for name, variant, k, recipe, device, cores, speed in rows:
        study, arm = studies.get(name), Arm(variant, k)
        if study and study.arms.get(arm.key) == arm and study.recipe_hash(arm) == recipe:
            content = study.recipe(arm)
            found += _row(content, k, study.trials, device, cores if device == "cpu" else 1, speed)
    return found


def _trained(connection: Any) -> list[dict[str, Any]]:
    """Earlier trainings, each by the share of a GPU or the cores it had."""
    rows = connection.execute(
        """SELECT any_value(settings), k, device, any_value(threads), any_value(gpu_share),
            any_value(samples_per_second)
        FROM runs WHERE status IN ('finished', 'stopped early') AND settings IS NOT NULL AND samples_per_second > 0
            AND CASE WHEN device = 'cpu' THEN threads ELSE gpu_share END > 0
        GROUP BY study, arm, recipe, attempt, k, device ORDER BY ALL"""
    ).fetchall()
    found = []
    for settings, k, device, threads, share, speed in rows:
        content = json.loads(settings)
        if "trials" in content:  # runs imported from other systems have settings of their own
            found += _row(content, k, content["trials"], device, threads if device == "cpu" else share, speed)
    return found


def _row(
    recipe: dict[str, Any], k: int, trials: int, device: str, num_devices: float, speed: float
) -> list[dict[str, Any]]:
    """One row, or none where it is not ResNet18k on CIFAR."""
    variant, dataset = recipe["variant"], recipe["data"]["dataset"]
    if variant["architecture"] != "preact_resnet18" or dataset not in _CIFAR:
        return []
    precision = variant.get("precision", "float32")
    keys = ("dataset", "k", "trials", "device", "num_devices", "precision", "images_per_second")
    return [dict(zip(keys, (dataset, k, trials, device, num_devices, precision, speed), strict=True))]


def measured_now(quick: bool) -> list[dict[str, Any]]:
    """On this machine, as the local backend trains."""
    from setups import make_setup, write_made_up_cifar
    from training import ours_alone

    steps = {2: 8, 8: 3, 16: 2, 64: 1} if quick else {2: 24, 4: 16, 8: 8, 16: 4, 32: 2, 64: 1}
    setups = [make_setup(f"k{k}", "cifar10", k, 1 if k > 16 else 5, count) for k, count in steps.items()]
    with tempfile.TemporaryDirectory() as folder:
        write_made_up_cifar(Path(folder), num_train=10_000, num_test=1_000)
        return ours_alone(setups, 3 if quick else 5, Path(folder))


def report(name: str, speeds: list[Speed]) -> dict[str, float]:
    """Print what a device would need; hours by key."""
    unit = "CPU-core-hours" if name.startswith("cpu,") else "GPU-hours"
    if len(speeds) < 3:
        print(f"\n{name}: measured at {len(speeds)} widths; a fit and its error need three")
        return {}
    model = fit(speeds)
    rate = f"{1e-9 / model[1]:,.0f} GFLOP/s" if model[1] else "a rate too high to be seen"
    print(f"\n{name}: an image takes {model[0] * 1e6:.1f} us + FLOPs / {rate}")
    for speed in speeds:
        predicted = model[0] + model[1] * flops(speed.k)
        deviation = predicted / speed.seconds - 1
        print(f"   k = {speed.k:2d}, {speed.trials} trials: {speed.seconds * 1e6:9.1f} us, fitted {deviation:+.0%}")
    edges = [1, 9, 17, 33, 49, 65]
    for first, end in itertools.pairwise(edges):
        print(f"   widths {first:2d} to {end - 1:2d} {hours(model, range(first, end)):14,.0f} {unit}")
    print(f"   Figure 1        {interpolated(speeds):14,.0f} {unit}, by times between those of the widths measured")
    total, error = hours(model, WIDTHS), jackknife_error(speeds)
    print(f"   Figure 1        {total:14,.0f} +- {error:,.0f} {unit}")
    print(f"   which is {total * 3600 / EPOCHS:.3f} s for an epoch of one network on average")
    key = name.replace(", ", "_").replace(" ", "_")
    return {f"{key}_hours": total, f"{key}_standard_error": error}


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", type=Path, help="file written by training.py --json, or by on_gpu.py")
    parser.add_argument("--root", type=Path, help="data root with the tables resource_probe or runs")
    parser.add_argument("--quick", action="store_true", help="measure fewer widths and steps")
    parser.add_argument("--json", type=Path, help='write {"ratios": {name: hours, ...}} to this file')
    arguments = parser.parse_args()
    if arguments.rates:
        content = json.loads(arguments.rates.read_text(encoding="utf-8"))
        rows = content["rates"] if "rates" in content else from_on_gpu(content)
    else:
        rows = from_root(arguments.root) if arguments.root else measured_now(arguments.quick)
    speeds = from_rates(rows)
    if not speeds:
        parser.error("no speed of ResNet18k on CIFAR is known there; train or probe a study of it first")
    ratios: dict[str, float] = {}
    for name, known in speeds.items():
        ratios |= report(name, known)
    if all(name.startswith("cpu,") for name in speeds):
        print("\nThere are no speeds of a GPU among these, so nothing can be said of GPU-hours here.")
    published = {what: seconds * EPOCHS / 3600 for what, seconds in PUBLISHED.items()}
    print("\nA published plain loop on a B200 would need, if all widths took as long as these:")
    for what, value in published.items():
        print(f"   {what:30s} {PUBLISHED[what]:6.2f} s for an epoch of one network, {value:6,.0f} GPU-hours")
    write_json(arguments.json, ratios, published_b200_hours=published)


if __name__ == "__main__":
    main()
