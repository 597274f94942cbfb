"""Small made-up tables in the platform's own schema, so that the figures are drawn without training anything."""

import contextlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from dd_core.analysis.auroc import auroc
from dd_core.store.store import Store
from dd_core.study.curvature_names import columns_of_step
from dd_core.study.study import Study
from dd_core.tables.files import to_arrow, write_parquet
from dd_core.tables.warehouse import connect

EPOCHS = (0, 1, 2, 4)


def make_study(**changes: object) -> Study:
    """Digits with label noise at four widths; by default the third is the threshold."""
    variant = {
        "architecture": "preact_resnet10",
        "label_noise": 0.2,
        "batch_size": 10,
        "optimizer": {"name": "adam", "learning_rate": 0.001},
    }
    content = {
        "name": "made_up",
        "description": "made up",
        "data": {"dataset": "digits", "num_train": 50},
        "variants": {"plain": variant},
        "widths": (1, 2, 4, 8),
        "trials": 2,
        "epochs": EPOCHS[-1],
        "checkpoints": EPOCHS,
    }
    return Study.model_validate({**content, **changes})


def made_up_test_error(k: int, epoch: int) -> float:
    """A double descent with its peak at k = 4; nothing learned at epoch 0."""
    return 0.9 if epoch == 0 else {1: 0.30, 2: 0.15, 4: 0.25, 8: 0.12}.get(k, 0.2) + 0.02 / epoch


def made_up_train_error(k: int, epoch: int) -> float:
    """At most 10 % from k = 4 on at the last epoch; 0.1 exactly there."""
    return 0.9 if epoch == 0 else {1: 0.40, 2: 0.20, 4: 0.10, 8: 0.0}.get(k, 0.3)


@pytest.fixture
def study() -> Study:
    return make_study()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def new_study() -> Callable[..., Study]:
    return make_study


Writer = Callable[..., None]


@pytest.fixture
def write_evals(store: Store) -> Writer:
    """Write evaluations of some arms, as trained by ``recipe_of`` (default: the study itself)."""

    def write(study: Study, arms: list[str] | None = None, recipe_of: Study | None = None, last: int = 9999) -> None:
        for key, arm in study.arms.items():
            if arms is not None and key not in arms:
                continue
            pairs = [(trial, epoch) for epoch in EPOCHS if epoch <= last for trial in range(study.trials)]
            trial, epoch = (np.array(values) for values in zip(*pairs, strict=True))
            test = np.array([made_up_test_error(arm.k, e) + 0.01 * (t - (study.trials - 1) / 2) for t, e in pairs])
            train = np.array([made_up_train_error(arm.k, e) for _, e in pairs])
            noisy = np.full(len(pairs), np.nan if study.variants[arm.variant].label_noise == 0 else 0.5)
            columns = {
                "variant": arm.variant, "k": arm.k, "trial": trial, "epoch": epoch, "step": epoch * 5,
                "recipe": (recipe_of or study).recipe_hash(arm),
                "train_error": train, "train_loss": 3 * train, "train_error_clean": train / 2,
                "train_loss_clean": train, "train_error_noisy": noisy, "train_loss_noisy": 4 * noisy,
                "validation_loss": math.nan, "validation_error": math.nan, "test_error": test, "test_loss": 4 * test,
            }  # fmt: skip
            path = store.table_folder("training_evals", study.name, key) / "0004.parquet"
            write_parquet(path, to_arrow("training_evals", columns, len(pairs)))

    return write


def made_up_images(k: int, trial: int, is_noisy: np.ndarray, steps: tuple[float, ...]) -> dict[str, np.ndarray]:
    """Scores of the images of a trial, the mislabelled ones higher; trial 0 has its images' numbers as traces."""
    rng = np.random.default_rng([k, trial])

    def score() -> np.ndarray:
        return rng.lognormal(size=len(is_noisy)) * np.where(is_noisy, 2.0, 1.0)

    names = ("loss", "gradient_norm", "gradient_curvature", "trace", "frobenius_norm", "largest_eigenvalue")
    scores = {name: score() for name in names}
    if trial == 0:
        scores["trace"] = np.arange(len(is_noisy), dtype=float)
    for step in steps:
        norm, norm_error, directional, directional_error = columns_of_step(step)
        # A tenth of ties, as rounding and saturation make them.
        scores |= {norm: np.round(score(), 1), norm_error: 0.1 * score()}
        scores |= {directional: score() - 1, directional_error: 0.1 * score()}
    return scores


@pytest.fixture
def write_curvature(store: Store) -> Writer:
    """Write the summary of curvature and, for the last epoch, the curvature of every image."""

    def write(study: Study, recipe_of: Study | None = None, steps: tuple[float, ...] = ()) -> None:
        for key, arm in study.arms.items():
            split = study.variants[arm.variant].label_noise > 0
            ids = np.arange(50)
            given = (ids + (ids >= 40)) % 10 if split else ids % 10
            is_noisy = given != ids % 10
            images = [made_up_images(arm.k, trial, is_noisy, steps) for trial in range(study.trials)]
            scores = [name for name in images[0] if not name.endswith("_standard_error")]
            subsets = ("all", "clean", "noisy") if split else ("all",)
            rows = [(t, e, s) for e in EPOCHS for t in range(study.trials) for s in subsets]
            level = np.array(
                [(1e-4 if e == 0 else 10.0 / abs(arm.k - 3.5)) * (3 if s == "noisy" else 1) for _, e, s in rows]
            )
            common = {"variant": arm.variant, "k": arm.k, "recipe": (recipe_of or study).recipe_hash(arm)}
            quantiles = zip(("p05", "p25", "p50", "p75", "p95"), (0.0, 0.3, 0.6, 1.5, 3.0), strict=True)
            means = ("frobenius_norm", "largest_eigenvalue", "gradient_norm", "gradient_curvature", "loss")
            summary = {
                **common,
                "trial": np.array([row[0] for row in rows]),
                "epoch": np.array([row[1] for row in rows]),
                "subset": np.array([row[2] for row in rows]),
                "num_seen_classes": None, "num_active_classes": None,
                "num_images": 10, "mean_trace": level, "source_sha256": "0", "mean_trace_standard_error": 0.0,
                **{f"trace_{name}": factor * level for name, factor in quantiles},
                **{f"mean_{name}": 1.0 for name in means},
                **{f"mean_{name}": 1.0 for name in scores if name.startswith("fd_")},
                **{f"auroc_{name}": np.array([auroc(images[t][name], is_noisy) for t, *_ in rows]) for name in scores},
            }  # fmt: skip
            folder = store.table_folder("curvature", study.name, key)
            write_parquet(folder / "summary.parquet", to_arrow("curvature", summary, len(rows)))
            per_image = {
                "num_seen_classes": None, "num_active_classes": None,
                **common, "trial": np.repeat(np.arange(study.trials), len(ids)), "epoch": EPOCHS[-1],
                **{
                    name: np.tile(values, study.trials)
                    for name, values in (
                        ("image_id", ids), ("true_label", ids % 10), ("given_label", given), ("is_noisy", is_noisy)
                    )
                },
                "probability": 0.5, "method": "exact", "trace_standard_error": 0.0,
                "frobenius_norm_standard_error": 0.0, "largest_eigenvalue_residual": 0.0,
                **{name: np.concatenate([trial[name] for trial in images]) for name in images[0]},
            }  # fmt: skip
            folder = store.table_folder("per_image_curvature", study.name, key)
            table = to_arrow("per_image_curvature", per_image, len(ids) * study.trials)
            write_parquet(folder / f"{EPOCHS[-1]:04d}.parquet", table)

    return write


def made_up_spectrum(k: int, trial: int, epoch: int) -> dict[str, Any]:
    """A diagonal Hessian of 100 k weights: eigenvalues that peak at k = 4, all different by trial."""
    top = (1 + trial / 10) * (1 + epoch) * np.array([8.0, 4.0, 2.0]) / abs(k - 4.5)
    grid = np.linspace(-1, 1.1 * top[0], 64)
    density = sum(
        weight * np.exp(-(((grid - node) / (0.02 * top[0])) ** 2) / 2)
        for node, weight in [(0, 1), *((t, 0.01) for t in top)]
    )
    return {
        "num_images": 50, "num_parameters": 100 * k, "layers": [], "loss": 0.5,
        "largest_eigenvalue": top[0], "largest_eigenvalue_residual": 0.0,
        "smallest_eigenvalue": -0.5, "smallest_eigenvalue_residual": 0.0,
        "eigenvalues": top.tolist(), "residuals": [0.0] * 3, "trace": 2 * top.sum(), "layer_names": ["all"],
        "layer_traces": [2 * top.sum()], "trace_hutchinson": 1.8 * top.sum(),
        "trace_hutchinson_standard_error": 0.3 * top.sum(), "trace_hutch_plus_plus": 1.9 * top.sum(),
        "trace_hutch_plus_plus_standard_error": 0.1 * top.sum(),
        "density_eigenvalues": grid.tolist(), "density": density.tolist(),
        "gradient_norm": 1.0, "gradient_sharpness": 1.0, "gradient_overlap": 0.2 + 0.1 * trial,
        "gradient_variance": 1.0, "image_gradient_norm_mean": 1.0, "image_gradient_norm_median": 1.0,
        "image_gradient_norm_max": 1.0, "seconds": 1.0,
    }  # fmt: skip


@pytest.fixture
def write_hessian(store: Store) -> Writer:
    """Write the Hessian in the weights of some arms at some epochs; ``without`` names columns that are null."""

    def write(
        study: Study,
        recipe_of: Study | None = None,
        epochs: tuple[int, ...] = EPOCHS,
        widths: tuple[int, ...] | None = None,
        without: tuple[str, ...] = (),
    ) -> None:
        for key, arm in study.arms.items():
            common = {"variant": arm.variant, "k": arm.k, "recipe": (recipe_of or study).recipe_hash(arm)}
            for epoch in epochs if widths is None or arm.k in widths else ():
                rows = [
                    {**common, "trial": trial, "epoch": epoch, **made_up_spectrum(arm.k, trial, epoch)}
                    for trial in range(study.trials)
                ]
                columns = {n: [None if n in without else row[n] for row in rows] for n in rows[0]}
                path = store.table_folder("hessian_spectra", study.name, key) / f"{epoch:04d}.parquet"
                write_parquet(path, to_arrow("hessian_spectra", columns, len(rows)))

    return write


@pytest.fixture
def open_views(store: Store) -> Iterator[Callable[[], duckdb.DuckDBPyConnection]]:
    """Connect after the tables are written; closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(connect(store)))
