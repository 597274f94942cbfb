"""The architectures by name, a record each: a new one is one record here and one module with its builder.

Everything that others ask of an architecture is a key of its record, or a method. Needs nothing but Python, so that
study files are read and costs predicted before torch is there; a builder is named as ``module:function`` and imported
when a network is made. FLOPs are as ``torch.utils.flop_counter`` counts them: convolutions and matrix products, two for
a multiply-add.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dd_core.study.graph_sizes import MEAN_SIZES, NUM_BASES
from dd_core.study.own_code import is_own_code

Shape = tuple[int, int, int]  # of an image: height, width, channels
Settings = Mapping[str, int | float | str | bool]


@dataclass(frozen=True)
class Setting:
    """What a study may say about an architecture beside its width, under ``network``.

    Attributes:
        default: leaves recipes as they are without the setting.
        choices: all there are; empty: any whole number from 1 to ``most``.
        most: largest number.
    """

    default: int | str
    choices: tuple[str, ...] = ()
    most: int = 1000

    def objection(self, value: Any) -> str:
        """Why a value is none for this setting; empty if it is one."""
        if self.choices:
            return "" if value in self.choices else f"should be {' or '.join(self.choices)}"
        is_number = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= self.most
        return "" if is_number else f"should be a whole number from 1 to {self.most}"


@dataclass(frozen=True)
class Architecture:
    """What is known of an architecture without torch.

    Attributes:
        name: as in a study file.
        label: for figures.
        builder: ``module:function``, called with (k, image shape, number of classes, trials) and the settings by name;
            ``trials=None`` makes a plain network, (B, channels, H, W) to (B, C), a number a stacked one,
            (B, T*channels, H, W) to (B, T, C).
        flops: of one image's forward pass, called with (k, image shape, number of classes) and the settings.
        citation: who described it.
        settings: those it knows.
        is_stackable: whether trials can share a network.
        is_piecewise_linear: whether it is so in its input, with its default settings.
        is_of_any_size: whether its parameters are the same for images of any size.
        positions: pixels left where its last BatchNorm is, called with the image shape; None: it has no BatchNorm.
        draws_random_numbers: whether it may do so while it trains (dropout).
        has_known_units: whether its hidden units are behind ReLUs and ``dd_core.models.hidden_units`` knows what makes
            each and what reads it.
        objection: why it cannot be with an image shape and settings, ``setting: reason``; empty if it can.
        examples: what it takes, images or graphs; of graphs the builder is called with (k, features of a node, classes,
            trials) and what the variant says under ``nsm``.
    """

    name: str
    label: str
    builder: str
    flops: Callable[..., int]
    citation: str
    settings: Mapping[str, Setting] = field(default_factory=dict)
    is_stackable: bool = True
    is_piecewise_linear: bool = True
    is_of_any_size: bool = True
    positions: Callable[[Shape], int] | None = None
    draws_random_numbers: bool = False
    has_known_units: bool = True
    objection: Callable[..., str] = lambda shape, **settings: ""
    examples: str = "images"

    @property
    def is_own(self) -> bool:
        """Whether it is code of the user's own."""
        return is_own_code(self.name)

    def refused_setting(self, settings: Settings) -> str:
        """``setting: reason`` for the first that it does not know or take; empty if there is none.

        What the user's own function takes, only that function knows.
        """
        for name, value in settings.items() if not self.is_own else ():
            if name not in self.settings:
                known = ", ".join(self.settings)
                return f"{name}: {self.name} has no such setting; {f'it has {known}' if known else 'it has none'}"
            if reason := self.settings[name].objection(value):
                return f"{name}: {reason} (got {value!r})"
        return ""

    def complete(self, settings: Settings) -> dict[str, Any]:
        """All settings, with defaults for those that are not given."""
        return {name: setting.default for name, setting in self.settings.items()} | dict(settings)

    def without_defaults(self, settings: Settings) -> dict[str, Any]:
        """The settings that differ from what they are anyway: those that are part of a recipe."""
        default = self.complete({})
        return {
            name: value for name, value in sorted(settings.items()) if name not in default or default[name] != value
        }

    def normalises_single_values(self, shape: Shape, settings: Settings) -> bool:
        """Whether a BatchNorm in it would see one value per channel of a single image, which it cannot normalise."""
        return self.has_batch_norm(settings) and self.positions is not None and self.positions(shape) == 1

    def has_batch_norm(self, settings: Settings) -> bool:
        """Whether there is a BatchNorm in it; in code of the user's own there may be."""
        return self.is_own or (self.positions is not None and self.complete(settings).get("norm", "batch") == "batch")

    def is_piecewise_linear_with(self, settings: Settings) -> bool:
        """Whether it is piecewise linear in its input; GroupNorm divides by what it is given."""
        return self.is_piecewise_linear and self.complete(settings).get("norm") != "group"

    def forward_flops(self, k: int, shape: Shape, num_classes: int, settings: Settings) -> int:
        """FLOPs of one image's forward pass."""
        return self.flops(k, shape, num_classes, **self.complete(settings))


def architecture_called(name: str) -> Architecture:
    """The record of a built-in architecture, or one for code of the user's own.

    Raises:
        KeyError: there is none (a validated study that is trained here cannot name it).
    """
    return _own(name) if is_own_code(name) else ARCHITECTURES[name]


def label_of(name: str) -> str:
    """For figures; what is not known, as of imported studies, is its own label."""
    return ARCHITECTURES[name].label if name in ARCHITECTURES else name


def forward_flops(architecture: str, k: int, shape: Shape, num_classes: int, settings: Settings | None = None) -> int:
    """FLOPs of one image's forward pass.

    Args:
        architecture: as in a study file.
        k: width multiplier.
        shape: height, width, channels of an image.
        num_classes: of the output.
        settings: of the architecture, those that are not at their defaults.

    Raises:
        KeyError: no such architecture (a validated study cannot name one).
    """
    return architecture_called(architecture).forward_flops(k, shape, num_classes, settings or {})


def _convolution(height: int, width: int, inputs: int, outputs: int, kernel: int) -> int:
    """A convolution whose output is ``height`` x ``width``."""
    return 2 * height * width * inputs * outputs * kernel**2


def _cnn5(k: int, shape: Shape, num_classes: int, norm: str) -> int:
    height, width, channels = shape
    flops = 0
    for stage in range(4):
        flops += _convolution(height, width, channels, k * 2**stage, 3)
        channels = k * 2**stage
        if stage:
            height, width = height // 2, width // 2
    return flops + 2 * channels * num_classes


def _resnet(blocks_per_stage: int) -> Callable[..., int]:
    """Four stages of two 3x3 convolutions a block, with a 1x1 convolution where the shape changes."""

    def flops(k: int, shape: Shape, num_classes: int, norm: str = "batch") -> int:
        height, width, channels = shape
        total = _convolution(height, width, channels, k, 3)
        channels = k
        for stage in range(4):
            for block in range(blocks_per_stage):
                outputs = k * 2**stage
                if stage and block == 0:
                    height, width = -(-height // 2), -(-width // 2)
                total += _convolution(height, width, channels, outputs, 3)
                total += _convolution(height, width, outputs, outputs, 3)
                if channels != outputs:
                    total += _convolution(height, width, channels, outputs, 1)
                channels = outputs
        return total + 2 * channels * num_classes

    return flops


def _mlp(k: int, shape: Shape, num_classes: int, layers: int) -> int:
    height, width, channels = shape
    return 2 * (height * width * channels * k + (layers - 1) * k * k + k * num_classes)


def _vit(k: int, shape: Shape, num_classes: int, patch: int, depth: int, heads: int) -> int:
    height, width, channels = shape
    patches, size = (height // patch) * (width // patch), k * heads
    tokens = patches + 1
    # Queries, keys and values, their projection, and four times the width and back; then two products of attention.
    block = 2 * tokens * size * size * (3 + 1 + 4 + 4) + 2 * 2 * tokens * tokens * size
    return 2 * patches * patch * patch * channels * size + depth * block + 2 * size * num_classes


def _patches_fit(shape: Shape, patch: int, **settings: Any) -> str:
    height, width, _ = shape
    fits = height % patch == 0 and width % patch == 0
    return "" if fits else f"patch: {patch} does not divide the {height}x{width} pixels of an image"


def _nsm(
    k: int,
    shape: Shape,
    num_classes: int,
    domain: str = "planning",
    num_bases: int | None = None,
    pool_ratio: float = 0.5,
    **others: Any,
) -> int:
    """FLOPs of a graph of the domain's mean size; what does not depend on nodes and edges is done once for a batch."""
    nodes, edges = MEAN_SIZES[domain]
    bases, features = num_bases or NUM_BASES[domain], shape[2]
    above = math.ceil(pool_ratio * nodes)
    top = math.ceil(pool_ratio * above)
    convolutions = nodes * features * (bases + 2) + edges * bases + (2 * above + top) * k * 3
    couplings = (nodes + above + top) * _coupling(k, 2 * k) + top * _coupling(features, 2 * k)
    linear = top * k * (k + features) + k * (k // 2) + k // 2 * num_classes
    return 2 * round(convolutions * k + couplings + linear)


def _coupling(width: int, hidden: int) -> int:
    """Multiplications of three affine couplings, each with two perceptrons of two hidden layers."""
    parts = (width // 2, max(1, width // 3), width // 2)
    return sum(2 * hidden * (part + hidden + width - part) for part in parts)


def _last_stage(shape: Shape) -> int:
    """Pixels after three strides of 2 that round up."""
    return -(-shape[0] // 8) * -(-shape[1] // 8)


_NORM = {"norm": Setting("batch", choices=("batch", "group", "none"))}
_NAKKIRAN = "P. Nakkiran et al. 2019, Deep Double Descent (arXiv:1912.02292)"

_RECORDS = (
    Architecture(
        name="preact_resnet18",
        label="pre-activation ResNet18",
        builder="dd_core.models.preact_resnet:resnet18",
        flops=_resnet(2),
        citation=f"{_NAKKIRAN}; K. He et al. 2016, Identity Mappings in Deep Residual Networks",
        settings=_NORM,
        positions=_last_stage,
    ),
    Architecture(
        name="preact_resnet10",
        label="pre-activation ResNet10",
        builder="dd_core.models.preact_resnet:resnet10",
        flops=_resnet(1),
        citation="as preact_resnet18, with one block per stage",
        settings=_NORM,
        positions=_last_stage,
    ),
    Architecture(
        name="cnn5",
        label="5-layer CNN",
        builder="dd_core.models.cnn5:cnn5",
        flops=_cnn5,
        citation=_NAKKIRAN,
        settings=_NORM,
        positions=lambda shape: (shape[0] // 4) * (shape[1] // 4),
    ),
    Architecture(
        name="resnet18",
        label="ResNet18",
        builder="dd_core.models.resnet:resnet18",
        flops=_resnet(2),
        citation="K. He et al. 2016, Deep Residual Learning for Image Recognition (arXiv:1512.03385), with a stem for "
        "small images; k = 64 is the standard network",
        settings=_NORM,
        positions=_last_stage,
    ),
    Architecture(
        name="incremental_resnet18",
        label="ResNet18 of incremental CIFAR",
        builder="dd_core.models.incremental_resnet:incremental_resnet18",
        flops=_resnet(2),
        citation="S. Dohare et al. 2024, Loss of plasticity in deep continual learning (Nature 632): torchvision's "
        "ResNet18 with a stem for small images and biases; k = 64 is the published network",
        positions=_last_stage,
    ),
    Architecture(
        name="mlp",
        label="multilayer perceptron",
        builder="dd_core.models.mlp:mlp",
        flops=_mlp,
        citation="M. Belkin et al. 2019, Reconciling modern machine-learning practice and the classical bias-variance "
        "trade-off (PNAS 116)",
        settings={"layers": Setting(1, most=100)},
        is_of_any_size=False,
    ),
    Architecture(
        name="vit",
        label="vision transformer",
        builder="dd_core.models.vit:vit",
        flops=_vit,
        citation="A. Dosovitskiy et al. 2021, An Image is Worth 16x16 Words (arXiv:2010.11929)",
        settings={"patch": Setting(4), "depth": Setting(6, most=100), "heads": Setting(4, most=100)},
        is_piecewise_linear=False,
        is_of_any_size=False,
        has_known_units=False,
        objection=_patches_fit,
    ),
    Architecture(
        name="nsm",
        label="NSM graph network",
        builder="dd_core.models.nsm.build:nsm",
        flops=_nsm,
        citation="research-developer/nsm: relational graph convolutions, pooling and reversible couplings on three "
        "levels; k = 64 is the published network",
        is_stackable=False,
        is_piecewise_linear=False,
        is_of_any_size=False,
        draws_random_numbers=True,
        has_known_units=False,
        examples="graphs",
    ),
)

ARCHITECTURES: dict[str, Architecture] = {record.name: record for record in _RECORDS}


def _own(name: str) -> Architecture:
    """What can be said of the user's own: it trains unstacked, and until it has run its cost is that of a ResNet18k."""
    return Architecture(
        name=name,
        label=name,
        builder="dd_core.models.own:own",
        flops=lambda k, shape, num_classes, **settings: _resnet(2)(k, shape, num_classes, "batch"),
        citation="",
        is_stackable=False,
        is_piecewise_linear=False,
        is_of_any_size=False,
        draws_random_numbers=True,
        has_known_units=False,
    )
