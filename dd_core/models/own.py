"""Networks of the user's own: any nn.Module that a function makes; admitted where it can be trained, saved and resumed.

What is asked of it is asked by running it once, here, so that a mistake is one sentence before anything is trained.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dd_core.errors import UserError
from dd_core.models.strided_pointwise import SoundConvolutions
from dd_core.study.architectures import Settings
from dd_core.study.own_code import describe, load_own_code

# What safetensors can keep and resume bit by bit.
_KEPT = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def own_network(
    architecture: str,
    k: int,
    channels: int,
    num_classes: int,
    size: tuple[int, int] | None,
    settings: Settings,
    digest: str | None,
) -> nn.Module:
    """What the user's function makes, after every question.

    Args:
        architecture: ``module:function``.
        k: width multiplier.
        channels: of the images.
        num_classes: of the output.
        size: of the images; None leaves out what can only be asked with an image.
        settings: keyword arguments of the function.
        digest: of its source, where that must be a certain one.

    Raises:
        UserError: there is no such function, or what it makes cannot be trained here.
    """
    make = load_own_code(architecture, "architecture", digest)
    try:
        network = make(k, channels, num_classes, **settings)
    except Exception as error:  # whatever the user's code raises
        said = describe(error)
        raise UserError(f"{_call(architecture, k, channels, num_classes, settings)} failed ({said})") from error
    if not isinstance(network, nn.Module):
        raise UserError(f"{architecture} must return a torch.nn.Module, not {type(network).__name__}")
    if size is not None:
        _see_that_it_runs(architecture, network, torch.zeros(2, channels, *size), num_classes)
    _see_that_it_can_be_saved(architecture, network)
    network.register_forward_pre_hook(_in_plain_memory)
    return network


def _in_plain_memory(module: nn.Module, images: tuple[Any, ...]) -> tuple[Any, ...]:
    """Images in PyTorch's own memory format, so that ``view`` works as where the network was written.

    Of one channel they lie in both formats at once, and convolutions would take the other; ``contiguous`` leaves them.
    """
    return tuple(x.clone(memory_format=torch.contiguous_format) if isinstance(x, Tensor) else x for x in images)


def _call(architecture: str, k: int, channels: int, num_classes: int, settings: Settings) -> str:
    given = "".join(f", {name}={value!r}" for name, value in settings.items())
    return f"{architecture}(k={k}, channels={channels}, num_classes={num_classes}{given})"


def _see_that_it_runs(architecture: str, network: nn.Module, images: Tensor, num_classes: int) -> None:
    """Logits of the right shape, a gradient for every parameter, and nothing that changes but what is saved.

    Layers that learn their sizes from the first image do so here. Leaves weights and random numbers as they were.
    """
    try:
        if any(nn.parameter.is_lazy(p) for p in (*network.parameters(), *network.buffers())):
            with torch.no_grad():
                network.eval()(images)
        state = {name: tensor.clone() for name, tensor in _tensors(network)}
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            logits = network.eval()(images)
            _refuse_logits(architecture, logits, num_classes)
            parameters = dict(network.named_parameters())
            frozen = [name for name, parameter in parameters.items() if not parameter.requires_grad]
            if not parameters or not logits.requires_grad:
                raise UserError(f"{architecture}: there is no parameter to train")
            found = torch.autograd.grad(
                logits.sum(), [p for p in parameters.values() if p.requires_grad], allow_unused=True
            )
            before = _unsaved(network)
            network.train()(images)
            after = _unsaved(network)
    except UserError:
        raise
    except Exception as error:  # whatever the user's code raises
        shape = "x".join(map(str, images.shape))
        raise UserError(f"{architecture}: its network fails on images of {shape} ({describe(error)})") from error
    trained = (name for name in parameters if name not in frozen)
    unused = [*frozen, *(name for name, gradient in zip(trained, found, strict=True) if gradient is None)]
    if unused:
        raise UserError(
            f"{architecture}: the parameter {unused[0]} is frozen or takes no part in the logits; register it as a "
            "buffer, or leave it out"
        )
    changed = next((name for name in after if not _same(before.get(name), after[name])), None)
    if changed is not None:
        raise UserError(
            f"{architecture}: a forward pass in training changes {changed}, which is not saved with the weights, so "
            "that training could not go on after a kill; make it a buffer (register_buffer, persistent)"
        )
    with torch.no_grad():
        for name, tensor in _tensors(network):
            tensor.copy_(state[name])


def _refuse_logits(architecture: str, logits: Any, num_classes: int) -> None:
    expected = f"must give logits of shape (2, {num_classes}) for 2 images"
    if not isinstance(logits, Tensor):
        raise UserError(f"{architecture}: its network {expected}, not {type(logits).__name__}")
    if logits.shape != (2, num_classes) or not logits.is_floating_point():
        raise UserError(f"{architecture}: its network {expected}, not {tuple(logits.shape)} of {logits.dtype}")


def _see_that_it_can_be_saved(architecture: str, network: nn.Module) -> None:
    """Weights and buffers are all of its state, and dense tensors."""
    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor) or nn.parameter.is_lazy(value):
            raise UserError(f"{architecture}: {name} is no tensor with values, so it cannot be saved; make it a buffer")
        if value.layout != torch.strided or value.dtype not in _KEPT or not value.numel():
            kind = "empty" if not value.numel() else f"{value.layout} of {value.dtype}"
            raise UserError(f"{architecture}: the tensor {name} is {kind}, which cannot be saved; make it dense")


def _tensors(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, value in network.state_dict().items():
        if isinstance(value, Tensor):
            yield name, value


def _unsaved(network: nn.Module) -> dict[str, Any]:
    """What a forward pass may change but no checkpoint has: other buffers, and numbers among the attributes."""
    saved = set(network.state_dict())
    found: dict[str, Any] = {name: t.clone() for name, t in network.named_buffers() if name not in saved}
    for prefix, module in network.named_modules():
        for name, value in vars(module).items():
            if name != "training" and isinstance(value, bool | int | float | Tensor):
                found[f"{prefix}.{name}".lstrip(".")] = value.clone() if isinstance(value, Tensor) else value
    return found


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.shape == second.shape and bool(torch.equal(first, second))
    return type(first) is type(second) and bool(first == second)


class _Alone(nn.Module):
    """A network as a stack of one: (B, channels, H, W) to (B, 1, C), under the names that its weights have alone."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network
        self.register_state_dict_post_hook(_without_prefix)

    def forward(self, images: Tensor) -> Tensor:
        """Logits; PyTorch's fault in strided convolutions is kept away."""
        with SoundConvolutions():
            logits: Tensor = self.network(images)
        return logits.unsqueeze(1)


def _without_prefix(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    for name in list(state):
        state[name.replace(f"{prefix}network.", prefix, 1)] = state.pop(name)


def alone(network: nn.Module) -> nn.Module:
    """A stack of one network."""
    return _Alone(network)
