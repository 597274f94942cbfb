"""Made-up tables of class-incremental training and of memorisation, so that figures have something known to show."""

import itertools
from typing import Any

import numpy as np
import scipy.stats

from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import TABLES, to_arrow, write_parquet

EVERY, NUM_TASKS, NUM_CLASSES, OF_CLASS = 4, 5, 10, 4
VARIANT = {"architecture": "mlp", "batch_size": 8, "optimizer": {"name": "sgd", "learning_rate": 0.1}}
SCORES = ("csl", "final_loss", "forgetting_events", "confidence", "area_under_margin", "trace_sum", "loss_sensitivity")


def incremental_study(**changes: Any) -> Study:
    """Digits, two classes and two more every four epochs, plain and with continual backprop."""
    mended = {**VARIANT, "interventions": {"continual_backprop": {}}}
    content = {
        "name": "incremental",
        "description": "made up",
        "data": {
            "dataset": "digits",
            "num_train": OF_CLASS * NUM_CLASSES,
            "classes": {"first": 2, "add": 2, "every": EVERY},
        },
        "variants": {"plain": VARIANT, "cbp": mended},
        "widths": (4,),
        "trials": 3,
        "epochs": EVERY * NUM_TASKS,
        "checkpoints": tuple(range(0, EVERY * NUM_TASKS + 1, 2)),
        "monitors": {"plasticity": {}},
    }
    return Study.model_validate({**content, **changes})


def memorization_study(**changes: Any) -> Study:
    """Digits with wrong labels of two kinds and rates, each trial on a random subset."""
    content = {
        "name": "memorization",
        "description": "made up",
        "data": {"dataset": "digits", "num_train": 100, "subset": 0.7},
        "variants": {
            "some": {**VARIANT, "label_noise": 0.1},
            "many": {**VARIANT, "label_noise": 0.2},
            "pairs": {**VARIANT, "label_noise": 0.2, "label_noise_kind": "pair_flip"},
        },
        "widths": (4,),
        "trials": 4,
        "epochs": 10,
        "checkpoints": (0, 10),
    }
    return Study.model_validate({**content, **changes})


def write_rows(store: Store, study: Study, table: str, rows: list[dict[str, Any]], arm: str | None = None) -> None:
    """Write rows as one file of a table, curvature as one of each epoch; what they lack is null."""
    names = [column.name for column in TABLES[table].file_columns]
    files: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        files.setdefault(f"{row['epoch']:04d}" if table == "per_image_curvature" else "made_up", []).append(row)
    for name, own in files.items():
        columns = {column: [row.get(column) for row in own] for column in names}
        path = store.table_folder(table, study.name, arm) / f"{name}.parquet"
        write_parquet(path, to_arrow(table, columns, len(own)))


def order_of(trial: int) -> np.ndarray:
    """The classes of a trial in the order in which they come."""
    return np.random.default_rng(trial).permutation(NUM_CLASSES)


def made_up_accuracy(variant: str, trial: int, task: int, epoch: int) -> float:
    """Rows of plain: 4 points less on the newest classes with every task, and 1 point forgotten an epoch."""
    fall = {"plain": 0.04, "cbp": 0.0}.get(variant, 0.0)
    return float(np.clip(0.95 - fall * (task - 1) - 0.01 * max(0, epoch - task * EVERY) + 0.005 * (trial - 1), 0, 1))


def made_up_trace(trial: int, task: int, epoch: int) -> float:
    """Curvature that doubles with every task since the class came."""
    return float((1 + 0.1 * trial) * 2 ** ((epoch - EVERY * (task - 1)) / EVERY))


def write_incremental(store: Store, study: Study) -> None:
    """``class_progress``, ``training_monitors``, ``per_image_curvature``, ``images`` and ``boundary_forgetting``."""
    schedule = study.data.classes
    assert schedule is not None
    task_of_rank = [rank // 2 + 1 for rank in range(NUM_CLASSES)]
    for key, arm in study.arms.items():
        common = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
        calendar = study.calendar(arm.variant)
        progress, monitors, curvature, boundaries = [], [], [], []
        for trial, epoch in itertools.product(range(study.trials), study.checkpoints):
            own = common | {"trial": trial, "epoch": epoch, "step": calendar.steps_after(epoch) if epoch else 0}
            order, rng = order_of(trial), np.random.default_rng([trial, epoch])
            for rank in range(schedule.evaluated(epoch, NUM_CLASSES)):
                label, task = int(order[rank]), task_of_rank[rank]
                accuracy = made_up_accuracy(arm.variant, trial, task, epoch)
                of_class = {"class_label": label, "class_rank": rank, "task": task, "num_images": 5}
                progress += [
                    own | of_class | {"split": split, "loss": 1 - accuracy, "accuracy": accuracy}
                    for split in ("train", "test")
                ]
                for i in range(OF_CLASS):
                    trace = made_up_trace(trial, task, epoch) * (0.5 + i / (OF_CLASS - 1))
                    labels = {"true_label": label, "given_label": label, "is_noisy": False}
                    curvature.append(own | labels | {"image_id": OF_CLASS * label + i, "trace": trace})
            if epoch:
                values = {
                    "dormant_units": 0.01 * epoch * (arm.variant == "plain") + 0.01 * trial,
                    "effective_rank": 20 - 0.2 * epoch * (arm.variant == "plain") + trial,
                    "stable_rank": 10 - 0.1 * epoch * (arm.variant == "plain") + trial,
                }
                monitors += [own | {"metric": metric, "value": value} for metric, value in values.items()]
            if epoch and epoch % EVERY == 0 and epoch < study.epochs:
                for (predictor, statistic), strength in {
                    ("csl", "sum"): 0.5, ("trace", "mean"): 0.3, ("loss", "mean"): 0.2, ("loss", "slope"): -0.1,
                }.items():  # fmt: skip
                    rho = strength + 0.02 * trial + 0.01 * rng.standard_normal()
                    boundaries.append(
                        own
                        | {"boundary": epoch, "until": epoch + 1, "predictor": predictor, "statistic": statistic}
                        | {"num_images": 20, "spearman": rho, "spearman_low": rho - 0.1, "spearman_high": rho + 0.1}
                        | {"quintile_forgetting": [0.1 + rho * fifth for fifth in range(5)]}
                    )
        write_rows(store, study, "class_progress", progress, key)
        write_rows(store, study, "training_monitors", monitors, key)
        write_rows(store, study, "per_image_curvature", curvature, key)
        write_rows(store, study, "boundary_forgetting", boundaries, key)
    images = [
        {
            "variant": variant, "trial": trial, "image_id": OF_CLASS * int(order_of(trial)[rank]) + i, "split": "train",
            "true_label": int(order_of(trial)[rank]), "given_label": int(order_of(trial)[rank]), "is_noisy": False,
            "class_rank": rank,
        }
        for variant in study.variants for trial in range(study.trials)
        for rank in range(NUM_CLASSES) for i in range(OF_CLASS)
    ]  # fmt: skip
    write_rows(store, study, "images", images)


def made_up_scores(study: Study, variant: str) -> dict[str, np.ndarray]:
    """Labels, memorisation itself and scores of all images of a variant; wrong labels are memorised more."""
    num = study.data.num_train or 0
    rng = np.random.default_rng([*variant.encode()])
    true = np.arange(num) % NUM_CLASSES
    is_noisy = rng.permutation(num) < round(study.variants[variant].label_noise * num)
    truth = np.clip(0.6 * is_noisy + 0.25 * rng.exponential(size=num), -0.2, 1)
    noise = dict(zip(SCORES, (0.1, 0.8, 0.2, 0.3, 0.3, 0.3, 0.15), strict=True))
    sign = {"confidence": -1, "area_under_margin": -1}
    scores = {name: sign.get(name, 1) * (truth + noise[name] * rng.standard_normal(num)) for name in SCORES}
    scores["forgetting_events"] = np.round(np.maximum(5 * scores["forgetting_events"], 0))
    given = np.where(is_noisy, (true + 1) % NUM_CLASSES, true)
    return {"true_label": true, "given_label": given, "is_noisy": is_noisy, "memorization": truth, **scores}


def write_memorization(store: Store, study: Study, *, truth: bool = True) -> None:
    """``memorization``, ``memorization_detection``, and with truth ``_truth`` and ``_agreement``."""
    for key, arm in study.arms.items():
        of_arm = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
        made = made_up_scores(study, arm.variant)
        labels = ("true_label", "given_label", "is_noisy")
        rows, of_truth, detection, agreement = [], [], [], []
        for image in range(len(made["memorization"])):
            own = of_arm | {"image_id": image} | {name: made[name][image] for name in labels}
            copied = {"copy_of": 0 if image == 1 else None, "duplicate": "exact" if image < 2 else None}
            rows += [
                own | copied | {"trial": trial, "num_evaluations": 10} | {name: made[name][image] for name in SCORES}
                for trial in range(study.trials)
                if (image + trial) % study.trials
            ]
            of_truth.append(
                own
                | {"source": "subsets", "num_in": study.trials - 1, "num_out": 1, "correct_in": 1.0}
                | {"memorization": made["memorization"][image], "standard_error": 0.1}
            )
        variant = study.variants[arm.variant]
        for target, score in itertools.product(("wrong label", "exact duplicate"), SCORES):
            strength = 0.5 + (0.45 if target == "wrong label" else 0.2) / (1 + SCORES.index(score))
            detection.append(
                of_arm
                | {"target": target, "label_noise": variant.label_noise, "score": score, "num_trials": study.trials}
                | {"label_noise_kind": variant.label_noise_kind, "num_images": 70, "num_positive": 28}
                | {"auroc": strength, "auroc_low": strength - 0.02, "auroc_high": strength + 0.02}
                | {"average_precision": 0.5, "average_precision_low": 0.4, "average_precision_high": 0.6}
            )
        for score, which in itertools.product(SCORES, ("all", "top")):
            x = made[score] * (-1 if score in ("confidence", "area_under_margin") else 1)
            y = made["memorization"]
            kept = y >= (np.quantile(y, 0.9) if which == "top" else -1)
            if not np.ptp(x[kept]) > 0:
                continue
            values = {
                "pearson": np.corrcoef(x[kept], y[kept])[0, 1],
                "spearman": scipy.stats.spearmanr(x[kept], y[kept]).statistic,
                "cosine": x[kept] @ y[kept] / np.linalg.norm(x[kept]) / np.linalg.norm(y[kept]),
            }
            ends = {f"{n}_{end}": v + d for n, v in values.items() for end, d in (("low", -0.05), ("high", 0.05))}
            agreement.append(
                of_arm | {"source": "subsets", "score": score, "images": which, "num_images": int(kept.sum())}
                | values | ends
            )  # fmt: skip
        write_rows(store, study, "memorization", rows, key)
        write_rows(store, study, "memorization_detection", detection, key)
        if truth:
            write_rows(store, study, "memorization_truth", of_truth, key)
            write_rows(store, study, "memorization_agreement", agreement, key)
