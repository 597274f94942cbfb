"""From a study's words to examples and task, by what its network takes: images, or graphs."""

from collections.abc import Sequence

import torch

from dd_core.data.trials import TrialData
from dd_core.study.architectures import architecture_called
from dd_core.study.study import Study
from dd_core.tasks.base import Examples, Task
from dd_core.tasks.graphs import GraphClassification, GraphExamples
from dd_core.tasks.images import Classification, Images, RepeatedImages, orders_of
from dd_core.tasks.losses import make_loss


def make_examples(
    study: Study, variant: str, trials: list[int], device: torch.device, dtype: torch.dtype, times: int = 0
) -> Examples:
    """The examples of some trials of a variant.

    Args:
        study: what is trained.
        variant: of it.
        trials: their numbers.
        device: where to.
        dtype: floating point type of the batches.
        times: how many arms of these trials share a network; 0: one arm that shares none.
    """
    if architecture_called(study.variants[variant].architecture).examples == "graphs":
        assert not times  # what draws random numbers shares nothing (dd_core.study.stacks)
        return GraphExamples(study, variant, trials, device, dtype)
    images = Images(study, variant, trials, device, dtype)
    return RepeatedImages(images, times) if times else images


def make_task(study: Study, variant: str, data: Sequence[TrialData], device: torch.device) -> Task:
    """What is learned of them.

    Args:
        study: what is trained.
        variant: of it.
        data: split and labels of each trial.
        device: of the network.

    Raises:
        UserError: a loss of the user's own cannot be made.
    """
    settings = study.variants[variant]
    loss = make_loss(settings.loss)
    if settings.nsm is not None:
        return GraphClassification(loss, settings.nsm.cycle_weight)
    return Classification(loss, orders_of(data, device))
