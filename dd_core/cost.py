"""What training costs before it is done: FLOPs of every architecture, and relative times from them. Needs no torch.

FLOPs are the multiplications and additions of convolutions and linear layers, a multiply-add counted as two, as in
``torch.utils.flop_counter``. The backward pass of such a layer is two products of the forward pass's size (for its
weights and for its inputs), so an image costs three forward passes to train and one to evaluate. What it costs beside
(augmentation, normalisation, the optimiser, calls) is told in FLOPs too.
"""

import math
import os

from dd_core.data.datasets import IMAGE_SHAPES, NUM_CLASSES, NUM_TRAIN
from dd_core.errors import UserError
from dd_core.studies import Arm, Study

# From ResNet10k on 8x8 digits, two trials on one thread of a CPU, trained and evaluated for 120 epochs in 10, 12, 21,
# 47 s at k = 1, 4, 8, 16, which this fits within 8 %. It decides the order of tasks; where two widths have been
# measured on a device, estimates take theirs (dd_core.estimate).
OVERHEAD_FLOPS = 2.0e6
# In larger batches and without an optimiser. Evaluating an image took 0.11, 0.13, 0.15, 0.18 of the time of training on
# it at these widths, and 0.30, 0.33 for ResNet18k at 32x32, k = 2, 8; this gives 0.10, 0.14, 0.20, 0.28; 0.25, 0.33.
_EVALUATION_OVERHEAD_FLOPS = OVERHEAD_FLOPS / 10
_NUM_OFFICIAL_TEST = {"digits": 0, "cifar10": 10_000, "cifar100": 10_000}


def forward_flops(architecture: str, k: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
    """FLOPs of one image's forward pass.

    Args:
        architecture: as in a study file.
        k: width multiplier.
        image_shape: height, width, channels.
        num_classes: of the output.

    Raises:
        KeyError: no such architecture (a validated study cannot name one).
    """
    if architecture == "cnn5":
        return _cnn5(k, image_shape, num_classes)
    return _preact_resnet(k, {"preact_resnet18": 2, "preact_resnet10": 1}[architecture], image_shape, num_classes)


def _convolution(height: int, width: int, inputs: int, outputs: int, kernel: int) -> int:
    """Of a convolution whose output is ``height`` x ``width``."""
    return 2 * height * width * inputs * outputs * kernel**2


def _cnn5(k: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
    height, width, channels = image_shape
    flops = 0
    for stage in range(4):
        flops += _convolution(height, width, channels, k * 2**stage, 3)
        channels = k * 2**stage
        if stage:
            height, width = height // 2, width // 2
    return flops + 2 * channels * num_classes


def _preact_resnet(k: int, blocks_per_stage: int, image_shape: tuple[int, int, int], num_classes: int) -> int:
    height, width, channels = image_shape
    flops = _convolution(height, width, channels, k, 3)
    channels = k
    for stage in range(4):
        for block in range(blocks_per_stage):
            outputs = k * 2**stage
            if stage and block == 0:
                height, width = -(-height // 2), -(-width // 2)
            flops += _convolution(height, width, channels, outputs, 3) + _convolution(
                height, width, outputs, outputs, 3
            )
            if channels != outputs:
                flops += _convolution(height, width, channels, outputs, 1)
            channels = outputs
    return flops + 2 * channels * num_classes


def training_flops(study: Study, arm: Arm) -> int:
    """FLOPs of training one trial of an arm on one image: three forward passes."""
    dataset = study.data.dataset
    architecture = study.variants[arm.variant].architecture
    return 3 * forward_flops(architecture, arm.k, IMAGE_SHAPES[dataset], NUM_CLASSES[dataset])


def num_evaluations(study: Study, first: int, until: int) -> int:
    """Evaluations after epoch ``first`` up to ``until``; a training from the beginning also evaluates epoch 0."""
    epochs = set(range(study.evaluation.every, until + 1, study.evaluation.every)) | {0, *study.checkpoints}
    return sum(first < epoch <= until or epoch == first == 0 for epoch in epochs)


def training_cost(study: Study, arm: Arm, first: int, until: int) -> float:
    """FLOPs, overhead included, of training all trials of an arm from one epoch to another, with the evaluations."""
    data, flops = study.data, training_flops(study, arm)
    num_train = study.num_train_images
    num_test = _NUM_OFFICIAL_TEST[data.dataset] or NUM_TRAIN[data.dataset] - num_train - data.num_validation
    trained = num_train * (until - first)
    evaluated = (num_train + data.num_validation + num_test) * num_evaluations(study, first, until)
    of_all = trained * (OVERHEAD_FLOPS + flops) + evaluated * (_EVALUATION_OVERHEAD_FLOPS + flops / 3)
    return study.trials * of_all


def equivalent_images(study: Study, arm: Arm, first: int, until: int) -> float:
    """Images to train on that would take as long as all trials of an arm from one epoch to another, evaluations too."""
    return training_cost(study, arm, first, until) / (OVERHEAD_FLOPS + training_flops(study, arm))


def price_per_gpu_hour(study: Study) -> float | None:
    """What an hour of a GPU costs: as the study says, else ``DD_PRICE_PER_GPU_HOUR``; None where neither does.

    Raises:
        UserError: the environment's is not a price.
    """
    if study.price_per_gpu_hour is not None:
        return study.price_per_gpu_hour
    text = os.environ.get("DD_PRICE_PER_GPU_HOUR", "").strip()
    if not text:
        return None
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise UserError(f"DD_PRICE_PER_GPU_HOUR must be a price, such as 2.5, not {text!r}")
    return price
