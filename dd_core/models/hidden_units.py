"""Which hidden units a network has, what makes each of them and what reads it: for what replaces single units.

Known of the platform's networks with ReLUs, plain or stacked. A unit is a channel of a convolution or an output of a
linear layer.
"""

import itertools
from dataclasses import dataclass

from torch import nn

from dd_core.models.cnn5 import CNN5
from dd_core.models.mlp import MLP
from dd_core.models.preact_resnet import PreActResNet
from dd_core.models.resnet import BasicBlock
from dd_core.models.stacking import Classifier


@dataclass(frozen=True)
class HiddenUnits:
    """The units of one layer. Layers are named as in ``named_modules``.

    Attributes:
        incoming: the layer whose outputs they are.
        normalisation: what normalises them, entry by entry; empty: nothing does.
        outgoing: the layer that reads them. Its input, behind ReLU and pooling, is their activation, and its weights
            have a column (a slice of kernels) for each.
        is_shared: whether a residual sum adds them to others' outputs and carries them on to further layers.
    """

    incoming: str
    normalisation: str
    outgoing: str
    is_shared: bool = False


def hidden_units(model: nn.Module) -> list[HiddenUnits]:
    """All of them, from the input to the output.

    Raises:
        TypeError: nothing is known of such a network.
    """
    if isinstance(model, MLP):
        linears = [f"layers.{index}" for index in range(0, len(model.layers), 2)]
        return [HiddenUnits(own, "", following) for own, following in itertools.pairwise(linears)]
    if isinstance(model, CNN5):
        convolutions = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
        pairs = itertools.pairwise([*convolutions, "linear"])
        return [HiddenUnits(own, _following(own), reader) for own, reader in pairs]
    if isinstance(model, PreActResNet):
        return _of_preactivation(model)
    blocks = [name for name, module in model.named_modules() if isinstance(module, BasicBlock)]
    if not blocks:
        raise TypeError(f"nothing is known of the hidden units of {type(model).__name__}")
    (last,) = [name for name, module in model.named_modules() if isinstance(module, Classifier)]
    return _of_residual(blocks, last)


def _following(name: str) -> str:
    """The module after one in an nn.Sequential."""
    parent, _, index = name.rpartition(".")
    return f"{parent}.{int(index) + 1}"


def _of_residual(blocks: list[str], last: str) -> list[HiddenUnits]:
    """Normalisation behind every convolution, and behind each sum a ReLU."""
    units = [HiddenUnits("conv1", "bn1", f"{blocks[0]}.conv1", is_shared=True)]
    for block, reader in itertools.pairwise([*(f"{name}.conv1" for name in blocks), last]):
        own = block.removesuffix(".conv1")
        units.append(HiddenUnits(f"{own}.conv1", f"{own}.bn1", f"{own}.conv2"))
        units.append(HiddenUnits(f"{own}.conv2", f"{own}.bn2", reader, is_shared=True))
    return units


def _of_preactivation(model: PreActResNet) -> list[HiddenUnits]:
    """The next block normalises a sum before it reads it; nothing does after the last block."""
    blocks = [f"blocks.{index}" for index in range(len(model.blocks))]
    units = [HiddenUnits("conv1", f"{blocks[0]}.bn1", f"{blocks[0]}.conv1", is_shared=True)]
    for own, following in itertools.pairwise([*blocks, ""]):
        units.append(HiddenUnits(f"{own}.conv1", f"{own}.bn2", f"{own}.conv2"))
        normalisation, reader = (f"{following}.bn1", f"{following}.conv1") if following else ("", "linear")
        units.append(HiddenUnits(f"{own}.conv2", normalisation, reader, is_shared=True))
    return units
