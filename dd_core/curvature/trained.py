"""A trained network and the images it was trained with, as they were in training: what every analysis begins with."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dd_core.data.augmentation import PlainImages
from dd_core.data.datasets import load
from dd_core.data.trials import TrialData, trial_data
from dd_core.models.build import in_its_memory, network_of
from dd_core.models.outputs import with_outputs
from dd_core.models.stacking import load_state
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Checkpoint, Study


def trained_network(study: Study, checkpoint: Checkpoint, weights: dict[str, Tensor], trial: int) -> nn.Module:
    """One trial's network in eval mode, on the CPU, in the memory format it was trained in.

    Args:
        study: gives the architecture.
        checkpoint: gives the width.
        weights: of all trials, (T, ...) by name.
        trial: which of them.
    """
    model = network_of(study, checkpoint.arm)
    load_state(model, {name: tensor[trial] for name, tensor in weights.items()})
    return in_its_memory(model.eval(), study, checkpoint.arm)


def seen_data(study: Study, checkpoint: Checkpoint, trial: int) -> TrialData:
    """The data of a trial, of the classes that a checkpoint has seen (at the initialisation: of the first task)."""
    data = trial_data(study, checkpoint.arm.variant, trial)
    return data.first_classes(study.num_classes_at(checkpoint.epoch))


def as_trained(study: Study, checkpoint: Checkpoint, model: nn.Module, data: TrialData) -> nn.Module:
    """The network with the outputs of the classes seen, in their order, as the loss sees it in training."""
    if data.order is None:
        return model
    height, width, channels = study.data.record.image_shape
    outputs = data.order[: study.num_classes_at(checkpoint.epoch)].tolist()
    return with_outputs(model, outputs, torch.zeros(1, channels, height, width))


def targets(data: TrialData, positions: Any) -> np.ndarray:
    """The outputs of ``as_trained`` that stand for the labels some training images were given, int64."""
    labels = data.train_labels[positions]
    return labels if data.ranks is None else data.ranks[labels]


def standardised(study: Study, data: TrialData, ids: np.ndarray, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Images (N, channels, height, width) as a trial's training saw them, without augmentation."""
    return PlainImages(load(study.data.dataset).images, [ids], [data], device, dtype).batch(0, len(ids))


def predicted_classes(
    study: Study, checkpoint: Checkpoint, store: Store, ids: dict[int, np.ndarray]
) -> dict[int, np.ndarray]:
    """The class that each trial's network holds most probable for some images, of the classes it has seen.

    Args:
        study: has images.
        checkpoint: a trained checkpoint.
        store: where the weights are.
        ids: by trial, the numbers of training images, int64 (N,).

    Returns:
        By trial, int64 (N,).

    Raises:
        StaleError: the weights are not there, or they are damaged or of another recipe.
        UserError: the architecture is not known here.
    """
    weights, _ = load_checkpoint(store, study, checkpoint)
    found = {}
    for trial, own in ids.items():
        data = seen_data(study, checkpoint, trial)
        network = as_trained(study, checkpoint, trained_network(study, checkpoint, weights, trial), data)
        with torch.inference_mode():
            outputs = network(standardised(study, data, own, torch.device("cpu"), torch.float32)).argmax(1).numpy()
        found[trial] = outputs if data.order is None else data.order[outputs]
    return found
