"""The Hessian in the weights at one trained checkpoint: a row for each trial."""

from typing import Any

import numpy as np
import torch

from dd_core.curvature.parameter_space.analysis import HessianResult, analyse_hessian
from dd_core.curvature.parameter_space.distributed import Group
from dd_core.data.randomness import generator
from dd_core.data.trials import TrialData
from dd_core.results.by_trial import TrainedTrial, by_trial, mean_of
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study
from dd_core.tables.kinds import HESSIAN
from dd_core.tasks.losses import make_loss


def hessian_of_checkpoint(
    study: Study,
    checkpoint: Checkpoint,
    store: Store,
    *,
    device: torch.device | None = None,
    group: Group | None = None,
) -> bool:
    """Analyse the Hessian of the training loss in the weights of every trial, as ``study.hessian`` says.

    Arguments, result and errors are those of ``by_trial``; a UserError also where the network lacks what is asked for.
    """
    num_images = study.num_seen_images(checkpoint.epoch)
    return by_trial(
        HESSIAN,
        study,
        checkpoint,
        store,
        _analysed,
        device=device,
        group=group,
        most_ranks=min(study.hessian.num_images or num_images, num_images),
        headline=lambda columns: {
            **mean_of(columns, "largest_eigenvalue", "trace"),
            "num_images": columns["num_images"][0],
        },
    )


def _analysed(of: TrainedTrial) -> dict[str, Any]:
    """One trial's row."""
    study, group = of.study, of.group
    dtype = getattr(torch, study.hessian.precision)
    chosen = _chosen_images(study, of.data, of.trial)
    own = chosen[group.rank() :: group.size()] if group else chosen
    model = of.model.to(of.device, dtype)
    images, labels = of.images(own, dtype), of.labels(own)
    loss = make_loss(study.variants[of.checkpoint.arm.variant].loss)
    result = analyse_hessian(model, images, labels, study.hessian, seed=study.seed + of.trial, group=group, loss=loss)
    return _row(result, study)


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
        "largest_eigenvalue": eigenvalues[0] if eigenvalues else None,
        "largest_eigenvalue_residual": residuals[0] if residuals else None,
        "smallest_eigenvalue": result.smallest_eigenvalue,
        "smallest_eigenvalue_residual": result.smallest_eigenvalue_residual,
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
