"""The Hessian in the weights at one trained checkpoint: every trial analysed, one parquet file and its manifest."""

import datetime
import time
from typing import Any

import numpy as np
import torch

from dd_core.curvature.parameter_space.analysis import HessianResult, analyse_hessian
from dd_core.curvature.parameter_space.distributed import Group, agreeing, sum_over
from dd_core.data.randomness import generator
from dd_core.data.trials import TrialData, trial_data
from dd_core.errors import UserError
from dd_core.results.kinds import HESSIAN_VERSION, hessian_is_current, hessian_manifest, hessian_settings
from dd_core.results.per_image_curvature import unchanged_weights
from dd_core.results.rows import standardised, trained_network
from dd_core.store.checkpoints import identity, load_checkpoint
from dd_core.store.files import remove
from dd_core.store.provenance import live_trials, weights_sha256
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.files import TABLES, to_arrow, write_parquet


def hessian_of_checkpoint(
    study: Study,
    checkpoint: Checkpoint,
    store: Store,
    *,
    device: torch.device | None = None,
    group: Group | None = None,
) -> bool:
    """Analyse the Hessian of the training loss in the weights of every trial, unless a current result is there.

    Args:
        study: ``study.hessian`` says what is computed and on how many images.
        checkpoint: a trained checkpoint.
        store: where the weights are and the result goes.
        device: default the CPU.
        group: processes that share the images; the first of them writes the result.

    Returns:
        Whether it was computed now.

    Raises:
        StaleError: the checkpoint is absent, damaged or of another recipe.
        UserError: every trial has diverged, or the network lacks what is asked for; with a group on every rank.
    """
    device = device or torch.device("cpu")
    rank, num_ranks = (group.rank(), group.size()) if group else (0, 1)
    with agreeing(group, device):
        weights, weights_manifest = load_checkpoint(store, study, checkpoint)
        trials = live_trials(weights_manifest)
        if not trials:
            raise UserError(
                f"every trial of {checkpoint.key} of {study.name} has diverged: there are no weights to look at"
            )
        if group and num_ranks > min(study.hessian.num_images or study.num_train_images, study.num_train_images):
            raise UserError(f"hessian.ranks is {num_ranks}, which is more than there are images")
    # The ranks may not see the same files at the same time: all of them do as the first.
    is_sound = rank == 0 and _is_sound(store, study, hessian_manifest(store, study, checkpoint), weights_manifest)
    if int(sum_over(group, torch.tensor([int(is_sound)], device=device))):
        return False
    dtype = getattr(torch, study.hessian.precision)
    rows = []
    for trial in trials:
        started = time.monotonic()
        data = trial_data(study, checkpoint.arm.variant, trial)
        chosen = _chosen_images(study, data, trial)
        model = trained_network(study, checkpoint, weights, trial).to(device, dtype)
        own = chosen[rank::num_ranks]
        images = standardised(study, data, data.train_ids[own], device, dtype)
        labels = torch.from_numpy(data.train_labels[own]).to(device)
        result = analyse_hessian(model, images, labels, study.hessian, seed=study.seed + trial, group=group)
        rows.append({"trial": trial, **_row(result, study), "seconds": time.monotonic() - started})
    if rank > 0:
        return True
    with unchanged_weights(store, study, checkpoint, weights_manifest, store.hessian_path(study.name, checkpoint)):
        _write(store, study, checkpoint, weights_manifest, rows, device, num_ranks)
    return True


def _write(
    store: Store,
    study: Study,
    checkpoint: Checkpoint,
    weights_manifest: dict[str, Any],
    rows: list[dict[str, Any]],
    device: torch.device,
    num_ranks: int,
) -> None:
    """Write the file, a row for each trial, and its manifest."""
    columns: dict[str, Any] = {column.name: [] for column in TABLES["hessian_spectra"].file_columns}
    constants = {
        "variant": checkpoint.arm.variant,
        "k": checkpoint.arm.k,
        "recipe": study.recipe_hash(checkpoint.arm),
        "epoch": checkpoint.epoch,
    }
    for row in rows:
        for name, values in columns.items():
            values.append({**constants, **row}[name])
    path = store.hessian_path(study.name, checkpoint)
    remove(store.manifest_path(path))  # it must not vouch for what is written in its place
    write_parquet(path, to_arrow("hessian_spectra", columns, len(rows)))
    seconds = sum(row["seconds"] for row in rows)
    manifest = {
        "kind": "hessian",
        **identity(study, checkpoint.arm),
        "epoch": checkpoint.epoch,
        "checkpoint_sha256": weights_sha256(weights_manifest),
        "hessian_version": HESSIAN_VERSION,
        "settings": hessian_settings(study),
        "rows": {"table": len(rows)},
        "headline": {
            **{name: float(np.mean(columns[name])) for name in ("lambda_max", "trace") if None not in columns[name]},
            "num_images": rows[0]["num_images"],
            "seconds": seconds,
            "gpu_seconds": seconds * num_ranks if device.type == "cuda" else 0.0,
            "ranks": num_ranks,
        },
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    store.write_manifest(store.manifest_path(path), manifest, {"table": path})


def _is_sound(store: Store, study: Study, hessian: dict[str, Any] | None, checkpoint: dict[str, Any]) -> bool:
    """Whether the file is current and unharmed."""
    return hessian is not None and hessian_is_current(hessian, checkpoint, study) and store.is_sound(hessian)


def _chosen_images(study: Study, data: TrialData, trial: int) -> np.ndarray:
    """Positions of the training images the loss is averaged over, ascending: all, or a fixed random subset."""
    num_images = len(data.train_ids)
    if study.hessian.num_images is None or study.hessian.num_images >= num_images:
        return np.arange(num_images)
    return np.sort(generator(study.seed, trial, "hessian").permutation(num_images)[: study.hessian.num_images])


def _row(result: HessianResult, study: Study) -> dict[str, Any]:
    """A result by the names of the table's columns."""
    by_layer = result.trace_by_layer
    eigenvalues = _values(result.eigenvalues)
    residuals = _values(result.eigenvalue_residuals)
    return {
        "num_images": result.num_images,
        "num_parameters": result.num_parameters,
        "layers": list(study.hessian.layers),
        "loss": result.loss,
        "lambda_max": eigenvalues[0] if eigenvalues else None,
        "lambda_max_residual": residuals[0] if residuals else None,
        "lambda_min": result.smallest_eigenvalue,
        "lambda_min_residual": result.smallest_eigenvalue_residual,
        "eigenvalues": eigenvalues,
        "residuals": residuals,
        "trace": result.trace_exact,
        "layer_names": None if by_layer is None else list(by_layer),
        "layer_traces": None if by_layer is None else list(by_layer.values()),
        "trace_hutchinson": result.trace_hutchinson,
        "trace_hutchinson_standard_error": result.trace_hutchinson_error,
        "trace_hutch_plus_plus": result.trace_hutch_plus_plus,
        "trace_hutch_plus_plus_standard_error": result.trace_hutch_plus_plus_error,
        "density_eigenvalues": _values(result.density_grid),
        "density": _values(result.density),
        "gradient_norm": result.gradient_norm,
        "gradient_sharpness": result.gradient_sharpness,
        "gradient_overlap": result.gradient_overlap,
        "gradient_variance": result.gradient_variance,
        "image_gradient_norm_mean": result.image_gradient_norm_mean,
        "image_gradient_norm_median": result.image_gradient_norm_median,
        "image_gradient_norm_max": result.image_gradient_norm_max,
    }


def _values(array: np.ndarray | None) -> list[float] | None:
    return None if array is None else array.tolist()
