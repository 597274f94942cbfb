"""How often each unit behind a ReLU is not zero, seen by hooks while a network computes some images."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class _Layer:
    """One call of a ReLU module.

    Attributes:
        on_positions: int64 (T, n), images and positions at which a unit was not zero.
        on_images: int64 (T, n), images on which it was not zero anywhere.
        num_positions: of an image.
        is_convolved: whether a convolution came after it.
    """

    on_positions: Tensor
    on_images: Tensor
    num_positions: int
    is_convolved: bool = False


class ReluUnits:
    """The units of a stacked network of T trials; of each layer n."""

    def __init__(self, model: nn.Module, num_trials: int):
        """Nothing has been seen."""
        self._model, self._num_trials = model, num_trials
        self._layers: list[_Layer] = []
        self._num_images = self._num_now = self._num_calls = 0

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Inside, every forward pass counts; announce it by ``begin``."""
        handles = []
        for module in self._model.modules():
            if isinstance(module, nn.ReLU):
                handles.append(module.register_forward_hook(lambda *call: self._note(call[2])))
            elif isinstance(module, _CONVOLUTIONS):
                handles.append(module.register_forward_pre_hook(lambda *call: self._note_convolution()))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def begin(self, num_images: int) -> None:
        """A forward pass of so many images comes."""
        self._num_now, self._num_calls = num_images, 0
        self._num_images += num_images

    def _note(self, outputs: Tensor) -> None:
        is_on = self._by_unit(outputs) != 0
        on_positions, on_images = is_on.sum((1, 3)), is_on.any(3).sum(1)
        if self._num_calls == len(self._layers):
            self._layers.append(_Layer(on_positions, on_images, is_on.shape[3]))
        else:
            self._layers[self._num_calls].on_positions += on_positions
            self._layers[self._num_calls].on_images += on_images
        self._num_calls += 1

    def _note_convolution(self) -> None:
        for layer in self._layers[: self._num_calls]:
            layer.is_convolved = True

    def _by_unit(self, outputs: Tensor) -> Tensor:
        """(T, B, n, positions) of what a ReLU gives: channels come second, features of linear layers last."""
        if outputs.ndim == 3:
            is_stacked = outputs.shape[:2] == (self._num_trials, self._num_now)
            return outputs[..., None] if is_stacked else outputs.transpose(1, 2)[None]  # or tokens of one network
        return outputs.unflatten(1, (self._num_trials, -1)).transpose(0, 1).unsqueeze(3).flatten(3)

    def share_of_dormant(self, threshold: float) -> Tensor | None:
        """The share of units that are not zero on less than ``threshold`` of what counts, (T,) float64; None: no ReLU.

        What counts are images and positions, and images alone where no convolution follows.
        """
        if not self._layers:
            return None
        shares = [
            layer.on_positions / (self._num_images * layer.num_positions)
            if layer.is_convolved
            else layer.on_images / self._num_images
            for layer in self._layers
        ]
        return (torch.cat(shares, 1) < threshold).double().mean(1)
