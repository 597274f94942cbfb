"""From a study's words to a network: the one place that asks an architecture's record for its module."""

import importlib
from typing import Any

import torch
from torch import nn

from dd_core.data.randomness import Purpose, torch_seed
from dd_core.errors import UserError
from dd_core.models.own import alone, own_network
from dd_core.models.stacking import Convolution, load_state, stack_states
from dd_core.study.architectures import Architecture, Settings, architecture_called
from dd_core.study.study import Arm, Study


def build(
    architecture: str,
    k: int,
    channels: int,
    num_classes: int,
    trials: int | None = None,
    *,
    settings: Settings | None = None,
    size: tuple[int, int] | None = None,
    digest: str | None = None,
) -> nn.Module:
    """An untrained network, initialised as PyTorch's layers do by default.

    Args:
        architecture: as in a study file.
        k: width multiplier.
        channels: of the input images.
        num_classes: of the output.
        trials: None for a plain network, (B, channels, H, W) to (B, C); a number T for a stacked one,
            (B, T*channels, H, W) to (B, T, C).
        settings: of the architecture, those that are not at their defaults.
        size: height and width of the images, which some architectures have to know.
        digest: of the source of an architecture of the user's own, see ``own_code.source_digest``; None: any.

    Raises:
        KeyError: no such architecture (a validated study cannot name one).
        UserError: it needs the size of the images, or takes graphs, or, of the user's own, cannot be made or trained.
    """
    record, given = architecture_called(architecture), dict(settings or {})
    if record.is_own:
        if trials not in (None, 1):
            raise UserError(f"{architecture}: a network of your own is not stacked, so there is no stack of {trials}")
        network = own_network(architecture, k, channels, num_classes, size, given, digest)
        return network if trials is None else alone(network)
    if record.examples != "images":
        raise UserError(f"{architecture} takes {record.examples}, not images; its networks are made from a study")
    if size is None and not record.is_of_any_size:
        raise UserError(f"{architecture} depends on the size of images: pass size=(height, width)")
    if reason := record.refused_setting(given):
        raise UserError(f"{architecture}: {reason}")
    return _made(record, k, (*(size or (0, 0)), channels), num_classes, trials, **record.complete(given))


def _made(record: Architecture, *arguments: Any, **settings: Any) -> nn.Module:
    module, _, function = record.builder.partition(":")
    made: nn.Module = getattr(importlib.import_module(module), function)(*arguments, **settings)
    return made


def network_of(study: Study, arm: Arm, trials: int | None = None) -> nn.Module:
    """An untrained network of an arm, plain or stacked, as ``build`` makes it; of graphs one for their nodes."""
    variant, graphs = study.variants[arm.variant], study.data.graphs
    if graphs is not None:
        record = architecture_called(variant.architecture)
        return _made(record, arm.k, graphs.num_features, study.data.record.num_classes, trials, variant.nsm)
    height, width, channels = study.data.record.image_shape
    return build(
        variant.architecture,
        arm.k,
        channels,
        study.data.record.num_classes,
        trials,
        settings=variant.network,
        size=(height, width),
        digest=variant.architecture_sha256,
    )


def in_its_memory(network: nn.Module, study: Study, arm: Arm) -> nn.Module:
    """The network in the memory format it is trained in.

    Training in channels-last memory is about 1.4 times faster on a CPU for small convolutions; code of others may take
    views that only PyTorch's own format allows, and graphs have no channels.
    """
    record = architecture_called(study.variants[arm.variant].architecture)
    has_own_format = record.is_own or record.examples != "images"
    return network if has_own_format else network.to(memory_format=torch.channels_last)


def build_trials(
    study: Study, arm: Arm, trials: list[int], purpose: Purpose = "initialisation", number: int = 0
) -> nn.Module:
    """The given trials of an arm as one stacked network, each with its own initialisation.

    A trial's initial weights depend on its seed alone, not on which trials it is stacked with. ``purpose`` and
    ``number`` choose others, which training may need later.
    """
    states = []
    with torch.random.fork_rng(devices=[]):
        for trial in trials:
            torch.manual_seed(torch_seed(study.seed, trial, purpose, number))
            states.append(network_of(study, arm).state_dict())
        model = network_of(study, arm, trials=len(trials))
    load_state(model, stack_states(states))
    for module in model.modules():
        if isinstance(module, Convolution):
            module.takes_products = True
    return in_its_memory(model, study, arm)
