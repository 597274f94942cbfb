"""What training costs before it is done: FLOPs of every architecture, and relative times from them. Needs no torch.

FLOPs are the multiplications and additions of convolutions and linear layers, a multiply-add counted as two, as in
``torch.utils.flop_counter``. The backward pass of such a layer is two products of the forward pass's size (for its
weights and for its inputs), so an image costs three forward passes to train and one to evaluate. What it costs beside
(augmentation, normalisation, the optimiser, calls) is told in FLOPs too.
"""

from bisect import bisect_right
from collections.abc import Collection

from dd_core.study.architectures import forward_flops
from dd_core.study.study import Arm, Study

# From ResNet10k on 8x8 digits, two trials on one thread of a CPU, trained and evaluated for 120 epochs in 10, 12, 21,
# 47 s at k = 1, 4, 8, 16, which this fits within 8 %. It decides the order of tasks; where two widths have been
# measured on a device, estimates take theirs (dd_core.forecast.speed).
OVERHEAD_FLOPS = 2.0e6
_MANY_ARMS = 1000
# In larger batches and without an optimiser. Evaluating an image took 0.11, 0.13, 0.15, 0.18 of the time of training on
# it at these widths, and 0.30, 0.33 for ResNet18k at 32x32, k = 2, 8; this gives 0.10, 0.14, 0.20, 0.28; 0.25, 0.33.
_EVALUATION_OVERHEAD_FLOPS = OVERHEAD_FLOPS / 10


def training_flops(study: Study, arm: Arm) -> int:
    """FLOPs of training one trial of an arm on one image: three forward passes."""
    record, variant = study.data.record, study.variants[arm.variant]
    shape, num_classes = record.image_shape, record.num_classes
    settings = variant.network if variant.nsm is None else variant.nsm.model_dump()
    return 3 * forward_flops(variant.architecture, arm.k, shape, num_classes, settings)


def num_evaluations(study: Study, first: int, until: int) -> int:
    """Evaluations after epoch ``first`` up to ``until``; a training from the beginning also evaluates epoch 0."""
    return len(_evaluations(study, first, until))


def _evaluations(study: Study, first: int, until: int) -> set[int]:
    """Their epochs. No others are looked at: a job asks for the cost of each of its thousands of tasks."""
    every, kept = study.evaluation.every, study.checkpoints
    usual = range((first // every + 1) * every, until + 1, every)
    return {*usual, *kept[bisect_right(kept, first) : bisect_right(kept, until)], *([0] if first == 0 else [])}


def num_examples(study: Study, arm: Arm, first: int, until: int) -> int:
    """Images that a trial of an arm is trained on from one epoch to another, each as often as it is."""
    calendar = study.calendar(arm.variant)
    if calendar.num_tasks == 1:
        return study.num_train_images * (until - first)
    return sum(map(calendar.examples_of, range(first + 1, until + 1)))


def _num_evaluated(study: Study, first: int, until: int) -> int:
    """Images of a trial in all evaluations, each as often as it costs a forward pass."""
    epochs = _evaluations(study, first, until)
    if "gradient_norm" not in study.image_values:
        return _num_images(study, epochs)
    # Forward once more, and backward to the pixels, which is one product of a forward pass's size.
    return _num_images(study, epochs) + 2 * _num_images(study, list(filter(study.keeps_images, epochs)))


def _num_images(study: Study, epochs: Collection[int]) -> int:
    if study.data.classes is None:
        return study.num_evaluated_images * len(epochs)
    return sum(map(study.num_images_evaluated_at, epochs))


def training_cost(study: Study, arm: Arm, first: int, until: int) -> float:
    """FLOPs, overhead included, of training all trials of an arm from one epoch to another, with the evaluations."""
    flops = training_flops(study, arm)
    trained, evaluated = num_examples(study, arm, first, until), _num_evaluated(study, first, until)
    of_all = trained * (OVERHEAD_FLOPS + flops) + evaluated * (_EVALUATION_OVERHEAD_FLOPS + flops / 3)
    return study.trials * of_all


def whole_cost(study: Study) -> float:
    """FLOPs, overhead included, of training all arms of a study to the end."""
    return sum(training_cost(study, arm, 0, study.epochs) for arm in study.arms.values())


def equivalent_images(study: Study, arm: Arm, first: int, until: int) -> float:
    """Images to train on that would take as long as all trials of an arm from one epoch to another, evaluations too."""
    return training_cost(study, arm, first, until) / (OVERHEAD_FLOPS + training_flops(study, arm))


def warning_of_size(study: Study) -> str:
    """What a study of more than a thousand arms, as a slip in a grid makes one, asks for; empty for smaller ones."""
    num_arms = len(study.arms)
    if num_arms <= _MANY_ARMS:
        return ""
    flops = whole_cost(study)
    return (
        f"{study.name} has {num_arms:,} arms, {num_arms * study.trials:,} runs of {study.epochs} epochs. It takes "
        f"{flops:.1e} floating-point operations, overhead included: {flops / 10e12 / 3600:,.0f} hours of a device that "
        "does 10 trillion a second. Partitions, or fewer values in its grids, make it smaller"
    )
