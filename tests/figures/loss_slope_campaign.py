"""A made-up campaign of loss curves: four families times learning rates, weight decays and seeds; some diverged.

The parameters of every run are drawn from a formula, its curve is drawn from the parameters, and its rows say just
these, so that figures have something known to show without any training or fitting.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import TABLES, to_arrow, write_parquet

STEPS_PER_EPOCH = 40
# By family: optimiser, norm, steepness of the early slope.
FAMILIES = {
    "s-core": ("sgd", "batch", -0.60),
    "s-bn-off": ("sgd", "none", -0.42),
    "s-narrow": ("sgd", "batch", -0.50),
    "s-adamw": ("adamw", "batch", -0.48),
}
MODELS = ("exponential", "power", "power_offset", "two_power")


def campaign_study(
    families: tuple[str, ...] = tuple(FAMILIES),
    rates: tuple[float, ...] = (0.05, 0.1, 0.2),
    decays: tuple[float, ...] = (1e-4, 1e-3, 1e-2),
    **changes: Any,
) -> Study:
    """The campaign on digits, written out; a family may also be a variant of its own."""
    variants = {
        f"{family}-lr{i}-wd{j}": {
            "architecture": "preact_resnet10",
            "network": {"norm": "none"} if FAMILIES[family][1] == "none" else {},
            "batch_size": 20,
            "optimizer": {"name": FAMILIES[family][0], "learning_rate": rate, "weight_decay": decay},
        }
        for family, (i, rate), (j, decay) in itertools.product(families, enumerate(rates), enumerate(decays))
    }
    content = {
        "name": "campaign",
        "description": "made up",
        "data": {"dataset": "digits", "num_train": 20 * STEPS_PER_EPOCH},
        "variants": variants,
        "widths": (8,),
        "trials": 6,
        "epochs": 50,
        "checkpoints": (0, 50),
    }
    return Study.model_validate({**content, **changes})


def family_of(variant: str) -> str:
    return next(family for family in FAMILIES if variant.startswith(family))


def diverges(study: Study, variant: str, trial: int) -> bool:
    """AdamW at rates of SGD, and half of the runs without norm at the highest rate."""
    optimizer, family = study.variants[variant].optimizer, family_of(variant)
    if family == "s-adamw":
        return optimizer.learning_rate >= 0.1
    return family == "s-bn-off" and optimizer.learning_rate >= 0.2 and trial % 2 == 0


def made_up_run(study: Study, variant: str, k: int, trial: int) -> dict[str, Any]:
    """What the tables say of one run, without what ``ARM`` says."""
    optimizer, family = study.variants[variant].optimizer, family_of(variant)
    rng = np.random.default_rng([k, trial, *variant.encode()])
    noise = rng.standard_normal
    settings = {
        "family": family, "architecture": "preact_resnet10", "norm": FAMILIES[family][1], "optimizer": optimizer.name,
        "learning_rate": optimizer.learning_rate, "weight_decay": optimizer.weight_decay, "momentum": 0.0,
        "batch_size": 20, "label_noise": 0.0, "steps_per_epoch": float(STEPS_PER_EPOCH), "source_sha256": "0",
    }  # fmt: skip
    if diverges(study, variant, trial):
        reason = f"its loss was no number any more from step {7 + trial} on"
        return settings | {
            "status": "diverged", "outcome": "diverged", "reason": reason, "num_steps": 6 + trial, "num_left_out": 2,
            "last_epoch": (6 + trial) / STEPS_PER_EPOCH,
        }  # fmt: skip
    setting = 0.06 * math.log2(optimizer.learning_rate / 0.1) - 0.03 * math.log10(optimizer.weight_decay / 1e-3)
    alpha = FAMILIES[family][2] - setting + 0.02 * noise() - 0.1 * math.log2(k / 8)
    error = 0.012 * (1 + abs(noise()))
    full, gap = alpha - 0.1 + 0.03 * noise(), abs(0.15 * noise())
    r_squared = float(np.clip(1 - 0.25 * gap**1.2 - 0.004 * rng.exponential(), 0, 1))
    knee = float(np.clip(4 + 1.5 * noise(), 0.5, 25))
    best = math.exp(-0.9 + 1.5 * (alpha + 0.5) + 0.06 * noise())
    delta = {"exponential": 60 + 25 * noise(), "two_power": 6 - 120 * gap, "offset": 1.5 - 40 * gap}
    linear = alpha * 0.5 / 10
    found = settings | {
        "status": "finished", "outcome": "fitted", "num_steps": study.epochs * STEPS_PER_EPOCH, "num_left_out": 3,
        "last_epoch": float(study.epochs), "first_fit_epoch": knee, "num_points": 180,
        "effective_sample_size": 60 + 10 * noise(), "standard_error_method": "newey_west", "estimator": "ols",
        "r_squared": r_squared, "residual_autocorrelation": 0.3, "residual_normality": 0.98,
        "knee_epoch": knee - 0.7 if trial % 5 else None, "knee_epoch_at_loss": knee + 1.2 + 0.2 * noise(),
        "knee_epoch_break": knee if trial % 6 else None, "early_break_epoch": None, "burn_in_loss": 1.1,
        "alpha_early": alpha, "alpha_early_standard_error": error, "alpha_early_low": alpha - 2 * error,
        "alpha_early_high": alpha + 2 * error, "alpha_early_bits": alpha + 1e-16,
        "alpha_early_linear": linear, "alpha_early_linear_bits": linear / math.log(2),
        "alpha_full": full, "alpha_full_standard_error": error / 2, "alpha_full_low": full - error,
        "alpha_full_high": full + error, "alpha_start_spread": 0.015 * math.exp(0.5 * noise()),
        "loss_at_early_stop": 0.5 + 0.4 * (best - 0.4) + 0.06 * noise(), "last_train_loss": 0.1,
        "best_validation_loss": best, "best_validation_epoch": 40.0, "last_validation_loss": 1.05 * best,
        "validation_is_test": False,
        "largest_eigenvalue_plateau_epoch": max(knee + 3 + 2 * noise(), 0.5) if trial % 4 else None,
        "largest_eigenvalue_early": 20 + 5 * noise(),
        "spectral_density_tail": 0.02 * math.exp(0.5 * noise() + 2 * alpha),
        "noise_floor": 0.05 * math.exp(0.3 * noise()),
        "residual_power": 0.05 * math.exp(0.4 * noise()), "best_model": "power" if gap < 0.05 else "two_power",
    }  # fmt: skip
    for name, value in delta.items():
        found |= {f"delta_aic_{name}": value, f"delta_aic_{name}_plain": 3.2 * value}
    return found | {"gap": gap}


def made_up_curve(study: Study, run: dict[str, Any], rng: np.random.Generator) -> np.ndarray:
    """Batch losses of a run: its slopes before and after its break, and its gap as noise."""
    steps = np.arange(1, run["num_steps"] + 1)
    if run["outcome"] != "fitted":
        return np.exp(0.1 * steps)
    knee, full = run["first_fit_epoch"] * STEPS_PER_EPOCH, run["alpha_full"]
    log_loss = np.where(steps < knee, -0.2 * np.log(steps / knee), full * np.log(steps / knee))
    late = np.maximum(np.log(steps / (0.4 * steps[-1])), 0)
    return run["burn_in_loss"] * np.exp(log_loss - 4 * run["gap"] * late + 0.1 * rng.standard_normal(len(steps)))


def made_up_fits(study: Study, run: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of ``loss_slope_fits`` of a fitted run, without what ``ARM`` says."""
    settings, knee, last = study.loss_slopes, run["first_fit_epoch"], run["last_epoch"]
    knee_step, stop = knee * STEPS_PER_EPOCH, last * STEPS_PER_EPOCH
    intercept = math.log(run["burn_in_loss"])

    def row(segment: str, model: str, first: float, until: float, **values: Any) -> dict[str, Any]:
        own = {"segment": segment, "model": model, "first_epoch": first, "last_epoch": until, "estimator": "ols"}
        return {"num_points": 100, "num_parameters": 2, "r_squared": run["r_squared"], "rss": 0.1, **own, **values}

    full = run["alpha_full"]
    straight = {"intercept": intercept - full * math.log(knee_step), "slope": full}
    rate = (full * math.log(stop / knee_step)) / (stop - knee_step)
    made = [
        row("straight", "power", knee, last, **straight),
        row("straight", "exponential", knee, last, intercept=intercept - rate * knee_step - 0.5, slope=rate),
        row(
            "straight", "power_offset", knee, last, **(straight | {"slope": 1.1 * full}),
            offset=0.02, num_parameters=3,
        ),
        row(
            "straight", "two_power", knee, last, **(straight | {"slope": 0.9 * full}), slope_after=1.5 * full,
            break_epoch=0.4 * last, break_epoch_low=0.3 * last, break_epoch_high=0.45 * last, num_parameters=7,
        ),
        row("before break", "power", 0.0, last, intercept=intercept + 0.2 * math.log(knee_step), slope=-0.2),
        row("after break", "power", knee, last, **straight),
        row("early", "power", *settings.early, slope=run["alpha_early"], intercept=intercept),
    ]  # fmt: skip
    for start, until in itertools.product(settings.scan_starts, settings.scan_stops):
        if until > start and until <= last:
            wobble = 0.3 / (until - start) * math.sin(97 * run["r_squared"] + start)
            made.append(
                row(
                    "scan",
                    "power",
                    start,
                    until,
                    slope=(run["alpha_early"] or full) + wobble,
                    intercept=intercept,
                )
            )
    return made


def write_campaign(
    store: Store,
    study: Study,
    change: Callable[[dict[str, Any], str, int], dict[str, Any]] | None = None,
    recipe_of: Study | None = None,
) -> None:
    """Write ``loss_slopes``, ``loss_slope_fits`` and ``training_batches`` of a study.

    Args:
        store: where.
        study: made by ``campaign_study``.
        change: what else is so in a run, of its row, its arm and its trial.
        recipe_of: default, the study itself.
    """
    for key, arm in study.arms.items():
        rows: dict[str, list[dict[str, Any]]] = {"loss_slopes": [], "loss_slope_fits": [], "training_batches": []}
        for trial in range(study.trials):
            of_arm = {"variant": arm.variant, "k": arm.k, "trial": trial}
            of_arm["recipe"] = (recipe_of or study).recipe_hash(arm)
            run = made_up_run(study, arm.variant, arm.k, trial)
            if change:
                run |= change(run, key, trial)
            rows["loss_slopes"].append(of_arm | run)
            if run["outcome"] == "fitted":
                rows["loss_slope_fits"] += [of_arm | fit for fit in made_up_fits(study, run)]
            losses = made_up_curve(study, run, np.random.default_rng([arm.k, trial]))
            rows["training_batches"] += [
                of_arm | {"step": i, "epoch": (i - 1) // STEPS_PER_EPOCH + 1, "train_loss": loss}
                for i, loss in enumerate(losses.tolist(), start=1)
            ]
        for table, own in rows.items():
            names = [column.name for column in TABLES[table].file_columns]
            columns = {name: [row.get(name) for row in own] for name in names}
            path = store.table_folder(table, study.name, key) / "0050.parquet"
            write_parquet(path, to_arrow(table, columns, len(own)))
