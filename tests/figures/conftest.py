"""Small made-up tables in the platform's own schema, so that the figures are drawn without training anything."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import numpy as np
import pytest

from dd_core.store import Store
from dd_core.studies import Study
from dd_core.tables import to_arrow, write_parquet
from dd_core.warehouse import connect

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
                "test_error": test, "test_loss": 4 * test,
            }  # fmt: skip
            path = store.table_folder("training_evals", study.name, key) / "0004.parquet"
            write_parquet(path, to_arrow("training_evals", columns, len(pairs)))

    return write


@pytest.fixture
def write_curvature(store: Store) -> Writer:
    """Write the summary of curvature and, for the last epoch, the curvature of every image."""

    def write(study: Study, recipe_of: Study | None = None) -> None:
        for key, arm in study.arms.items():
            split = study.variants[arm.variant].label_noise > 0
            subsets = ("all", "clean", "noisy") if split else ("all",)
            rows = [(t, e, s) for e in EPOCHS for t in range(study.trials) for s in subsets]
            level = np.array(
                [(1e-4 if e == 0 else 10.0 / abs(arm.k - 3.5)) * (3 if s == "noisy" else 1) for _, e, s in rows]
            )
            common = {"variant": arm.variant, "k": arm.k, "recipe": (recipe_of or study).recipe_hash(arm)}
            quantiles = zip(("p05", "p25", "p50", "p75", "p95"), (0.0, 0.3, 0.6, 1.5, 3.0), strict=True)
            summary = {
                **common,
                "trial": np.array([row[0] for row in rows]),
                "epoch": np.array([row[1] for row in rows]),
                "subset": np.array([row[2] for row in rows]),
                "num_images": 10, "mean_trace": level, "source_sha256": "0",
                **{f"trace_{name}": factor * level for name, factor in quantiles},
                **{f"mean_{name}": 1.0 for name in ("frobenius_norm", "largest_eigenvalue", "gradient_norm", "loss")},
                **{f"auroc_{name}": 0.7 for name in ("trace", "gradient_norm", "loss")},
            }  # fmt: skip
            folder = store.table_folder("curvature", study.name, key)
            write_parquet(folder / "summary.parquet", to_arrow("curvature", summary, len(rows)))
            ids = np.arange(50)
            given = (ids + (ids >= 40)) % 10 if split else ids % 10
            images = {
                **common, "trial": 0, "epoch": EPOCHS[-1], "image_id": ids, "true_label": ids % 10,
                "given_label": given, "is_noisy": given != ids % 10, "trace": ids.astype(float), "probability": 0.5,
                **{name: 1.0 for name in ("loss", "gradient_norm", "frobenius_norm", "largest_eigenvalue")},
            }  # fmt: skip
            folder = store.table_folder("per_image_curvature", study.name, key)
            write_parquet(folder / "0004.parquet", to_arrow("per_image_curvature", images, len(ids)))

    return write


@pytest.fixture
def open_views(store: Store) -> Iterator[Callable[[], duckdb.DuckDBPyConnection]]:
    """Connect after the tables are written; closed at the end of the test."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(contextlib.closing(connect(store)))
