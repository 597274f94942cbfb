"""Per-image curvature of one trained checkpoint: read the weights, compute, write the parquet file and its manifest."""

import datetime
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dd_core.curvature.per_image import CurvatureColumns, per_image_curvature
from dd_core.data.augmentation import PlainImages
from dd_core.data.datasets import IMAGE_SHAPES, NUM_CLASSES, load
from dd_core.data.trials import TrialData, trial_data
from dd_core.errors import StaleError
from dd_core.models import build, load_state
from dd_core.provenance import CURVATURE_VERSION, curvature_is_current, curvature_manifest
from dd_core.store import Store
from dd_core.studies import Checkpoint, Study
from dd_core.tables import to_arrow, write_parquet
from dd_core.training.checkpoints import identity, load_checkpoint
from dd_core.training.stack import stacking

CURVATURE_NAMES = tuple(CurvatureColumns.__dataclass_fields__)


def curve_checkpoint(
    study: Study,
    checkpoint: Checkpoint,
    store: Store,
    *,
    device: torch.device | None = None,
    batch_size: int = 100,
    dtype: torch.dtype = torch.float32,
) -> bool:
    """Compute the curvature of every training image of every trial, unless a current result is there.

    Args:
        study: the study.
        checkpoint: a trained checkpoint.
        store: where the weights are and the result goes.
        device: default the CPU.
        batch_size: images per pass; the result does not depend on it.
        dtype: of the passes; sums and the softmax are float64 in any case.

    Returns:
        Whether it was computed now.

    Raises:
        StaleError: the checkpoint is absent, damaged or of another recipe.
        UserError: the weights are not finite.
    """
    device = device or torch.device("cpu")
    started = time.monotonic()
    weights, weights_manifest = load_checkpoint(store, study, checkpoint)
    if _is_sound(store, curvature_manifest(store, study, checkpoint), weights_manifest):
        return False
    data = [trial_data(study, checkpoint.arm.variant, trial) for trial in range(study.trials)]
    values = _all_trials(study, checkpoint, weights, data, device, dtype, batch_size)
    num_rows = len(values["trace"])
    columns = {
        "variant": checkpoint.arm.variant,
        "k": checkpoint.arm.k,
        "recipe": study.recipe_hash(checkpoint.arm),
        "epoch": checkpoint.epoch,
        "trial": np.repeat(np.arange(study.trials), num_rows // study.trials),
        "image_id": np.concatenate([d.train_ids for d in data]),
        "true_label": np.concatenate([d.true_train_labels for d in data]),
        "given_label": np.concatenate([d.train_labels for d in data]),
        "is_noisy": np.concatenate([d.is_noisy for d in data]),
        **values,
    }
    path = store.curvature_path(study.name, checkpoint)
    write_parquet(path, to_arrow("per_image_curvature", columns, num_rows))
    manifest = {
        "kind": "per_image_curvature",
        **identity(study, checkpoint.arm),
        "epoch": checkpoint.epoch,
        "checkpoint_sha256": weights_manifest["files"]["weights"]["sha256"],
        "curvature_version": CURVATURE_VERSION,
        "settings": {},
        "rows": {"table": num_rows},
        "headline": {
            "mean_trace": float(values["trace"].mean()),
            "median_trace": float(np.median(values["trace"])),
            "images_per_second": num_rows / (time.monotonic() - started),
        },
        "device": device.type,
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    store.write_manifest(path.with_suffix(".json"), manifest, {"table": path})
    return True


def _all_trials(
    study: Study,
    checkpoint: Checkpoint,
    weights: dict[str, Tensor],
    data: list[TrialData],
    device: torch.device,
    dtype: torch.dtype,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """Every column of the curvature, float64 (trials * images,), trial after trial."""
    values: dict[str, list[Tensor]] = {name: [] for name in CURVATURE_NAMES}
    for trials in stacking(study, checkpoint.arm):
        subset = [data[trial] for trial in trials]
        state = {name: tensor[trials].flatten(0, 1) for name, tensor in weights.items()}
        model = trained_stack(study, checkpoint, len(trials), state).to(device, dtype).eval()
        images = PlainImages(load(study.data.dataset).images, [d.train_ids for d in subset], subset, device, dtype)
        labels = torch.from_numpy(np.stack([d.train_labels for d in subset], axis=1)).to(device)
        batches = []
        for start in range(0, images.num_images, batch_size):
            stop = start + batch_size
            batches.append(per_image_curvature(model, images.batch(start, stop), labels[start:stop], batch_size))
        for name in CURVATURE_NAMES:
            values[name].append(torch.cat([getattr(batch, name) for batch in batches]))
    return {name: torch.cat(parts, dim=1).T.reshape(-1).numpy() for name, parts in values.items()}


def trained_stack(study: Study, checkpoint: Checkpoint, num_trials: int, state: dict[str, Tensor]) -> nn.Module:
    """A stacked network of the study's architecture with the given weights, on the CPU."""
    shape = (IMAGE_SHAPES[study.data.dataset][2], NUM_CLASSES[study.data.dataset])
    architecture = study.variants[checkpoint.arm.variant].architecture
    model = build(architecture, checkpoint.arm.k, *shape, trials=num_trials)
    load_state(model, state)
    return model.to(memory_format=torch.channels_last)


def _is_sound(store: Store, curvature: dict[str, Any] | None, checkpoint: dict[str, Any]) -> bool:
    """Whether the curvature file is current and unharmed."""
    if curvature is None or not curvature_is_current(curvature, checkpoint):
        return False
    try:
        store.verify(curvature, "table")
    except StaleError:
        return False
    return True
