"""What the scores need of trained networks beyond what training records: GraNd, and predictions of images left out.

Computed on this machine from the checkpoints, only where a study asks for it under ``memorization``.
"""

import numpy as np
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from dd_core.curvature.trained import as_trained, seen_data, standardised, targets, trained_network
from dd_core.data.trials import trial_data
from dd_core.errors import StaleError
from dd_core.results.memorization_scores import Probes
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tasks.losses import Loss, make_loss

_BATCH = 64


def probes_of(store: Store, study: Study, arm: Arm) -> Probes:
    """Look at the checkpoints of an arm that the study names; those that are not trained yet say nothing."""
    settings, probes = study.memorization, Probes()
    norms: dict[int, list[dict[int, float]]] = {}
    for epoch in settings.grand:
        checkpoint = Checkpoint(arm, epoch)
        for trial, model in _networks(store, study, checkpoint):
            norms.setdefault(trial, []).append(_gradient_norms(study, checkpoint, trial, model))
    for trial, own in norms.items():
        images = {image for part in own for image in part}
        probes.grand[trial] = {i: float(np.mean([part[i] for part in own if i in part])) for i in images}
    if settings.out_of_fold:
        for trial, model in _networks(store, study, Checkpoint(arm, study.checkpoints[-1])):
            probes.predictions[trial] = _predictions(study, arm, trial, model)
    return probes


def _networks(store: Store, study: Study, checkpoint: Checkpoint) -> list[tuple[int, nn.Module]]:
    """The trials of a checkpoint that have weights, with their networks in eval mode."""
    try:
        weights, manifest = load_checkpoint(store, study, checkpoint)
    except StaleError:
        return []
    return [(trial, trained_network(study, checkpoint, weights, trial)) for trial in manifest.live_trials]


def gradient_norms(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, loss: Loss) -> torch.Tensor:
    """The norm of the gradient of each image's loss in all weights, (B,), in one vectorised pass.

    GraNd (Paul et al. 2021, "Deep learning on a data diet", definition 2.1), of one network in eval mode.
    """
    weights = {name: value.detach() for name, value in model.named_parameters()}
    rest = dict(model.named_buffers())

    def of_one(own: dict[str, torch.Tensor], image: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return loss.losses(functional_call(model, (own, rest), (image[None],)), label[None]).sum()

    gradients = vmap(grad(of_one), in_dims=(None, 0, 0))(weights, images, labels)
    squares = [part.flatten(1).square().sum(1) for part in gradients.values()]
    return torch.stack(squares).sum(0).sqrt()


def _gradient_norms(study: Study, checkpoint: Checkpoint, trial: int, model: nn.Module) -> dict[int, float]:
    """By id of the images that the checkpoint has seen, of the loss as it was trained with."""
    data = seen_data(study, checkpoint, trial)
    model = as_trained(study, checkpoint, model, data)
    labels = torch.from_numpy(targets(data, slice(None)))
    loss = make_loss(study.variants[checkpoint.arm.variant].loss)
    images = standardised(study, data, data.train_ids, torch.device("cpu"), torch.float32)
    norms = [
        gradient_norms(model, images[start : start + _BATCH], labels[start : start + _BATCH], loss)
        for start in range(0, len(labels), _BATCH)
    ]
    return dict(zip(data.train_ids.tolist(), torch.cat(norms).tolist(), strict=True))


def _predictions(study: Study, arm: Arm, trial: int, model: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    """Image ids, and probabilities float64 (images, classes), of what a trial left out."""
    data = trial_data(study, arm.variant, trial)
    images = standardised(study, data, data.left_out_ids, torch.device("cpu"), torch.float32)
    with torch.no_grad():
        outputs = torch.cat([model(images[start : start + 256]) for start in range(0, len(images), 256)])
    return data.left_out_ids, torch.softmax(outputs.double(), 1).numpy()
