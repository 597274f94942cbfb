"""The published per-image curvature: how much the loss gradient changes when the image is moved a little.

With r an image of random signs, h a step and g(r) = grad L(x + h r) - grad L(x), gradients in the image x,

    norm = mean over r of ||g(r)||,      directional = mean over r of (h r) . g(r).

Garg & Roy 2023 (arXiv 2307.05831); Ravikumar et al. 2024 (ICML), eq. 14; the "curvature" and "directional eigenvalue"
of their published code. Three normalisations:

* ``sum``: of each image's own loss, as written above. norm ~ h E||Hr||, directional ~ h^2 trace H.
* ``per_step``: derivatives. norm / h estimates E||Hr||, directional / h^2 the trace of H.
* ``mean``: what the published code computes. Its loss is the mean over a batch of B images, so its values are those of
  ``sum`` divided by B, and jump at a shorter last batch.

None of these is the Hessian at x unless the loss is smooth at scale h. In a ReLU network a step of 1e-3 crosses kinks,
each of which changes the gradient by an amount that does not shrink with h: the result is curvature smoothed over h.

The published code makes 2n passes for n probes, half of them over the same unmoved images; n + 1 give the same score.
"""

from collections.abc import Sequence
from functools import cache
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dd_core.curvature.copies import Output
from dd_core.curvature.evaluation import (
    SMALLEST_PASS,
    check_data,
    in_layout_of,
    logits_of,
    mean_and_error,
    padded,
    require_finite,
)
from dd_core.curvature.input_space.affine_maps import Network, affine_maps, rows_per_pass
from dd_core.curvature.input_space.linearized import LinearizedNetwork
from dd_core.curvature.input_space.signs import Stream, rademacher
from dd_core.curvature.network import admitted, as_tensors
from dd_core.errors import UserError
from dd_core.machine.memory import in_blocks
from dd_core.study.curvature_names import columns_of_step
from dd_core.tasks.losses import CROSS_ENTROPY, Loss

# Images in memory at once, each in 1 + steps x probes places.
_IN_MEMORY = 100

Normalisation = Literal["sum", "per_step", "mean"]


def finite_difference_curvature(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    image_ids: Tensor,
    *,
    steps: Sequence[float] = (1e-3, 1.0, 3.0),
    num_probes: int = 10,
    normalisation: Normalisation = "per_step",
    mean_batch_size: int | None = None,
    batch_size: int | None = None,
    seed: int = 0,
    output: Output = None,
    loss: Loss = CROSS_ENTROPY,
) -> dict[str, Tensor]:
    """Finite-difference curvature of each image, for every step with the same probes.

    A model in channels-last memory is 1.4 times as fast on a CPU. Gradients are in the model's precision, norms and
    sums over pixels and probes in float64.

    The size of a batch changes the memory, not the result. On a CPU an image's gradient has the same bits in any pass
    of 8 images or more, and none is shorter (unless memory is), so that the last one is padded. A GPU may choose other
    kernels for other shapes, and small differences amplify their rounding: there every pass has one shape, and only
    another ``batch_size`` may change what float32 leaves uncertain anyway, about 1e-7 of the gradient norm.

    Args:
        model: one network in eval mode, float32 or float64, (B, *shape) to logits (B, C).
        images: (N, *shape), in the model's precision and on its device.
        labels: int64 (N,), the given labels.
        image_ids: int64 (N,), which decide the probes.
        steps: h, in units of the (standardised) input.
        num_probes: n, per image and shared by the steps.
        normalisation: "sum", "per_step" or "mean", see above.
        mean_batch_size: B of "mean" only: images in the given order form batches of B, the last one what is left.
        batch_size: moved images per pass and images in memory, default 100 in memory and as many per pass as are
            fastest; below 16 it counts as 16.
        seed: of the probes.
        output: which of the model's outputs are the logits, where it gives several.
        loss: whose curvature.

    Returns:
        Float64 (N,) on the CPU by name, see ``columns_of_step``: for each step norm and directional value and the
        standard error over the probes of each (NaN with one probe).

    Raises:
        UserError: the model, data or settings are not as above, or not even one image fits into memory.
    """
    images, labels = as_tensors(images, labels, model)
    check_data(model, images, labels, image_ids)
    names = [name for h in steps for name in columns_of_step(h)]
    if not names or len(set(names)) != len(names):
        raise UserError(f"steps must be one or more different numbers, not {list(steps)}")
    batch_lengths = _batch_lengths(normalisation, mean_batch_size, len(images))

    @cache
    def prepared_maps() -> tuple[Network, int]:
        """Within ``in_blocks``, where want of memory is known."""
        logits_of(network, images[:1], labels)
        maps = affine_maps(network, padded(images[:2], 2), images.dtype)
        is_fast = batch_size is None and isinstance(maps, LinearizedNetwork)
        return maps, rows_per_pass(maps.forward(images[:1]), images.device) if is_fast else 0

    def compute(start: int, stop: int, size: int) -> Tensor:
        probes = rademacher(
            image_ids[start:stop], num_probes, tuple(images.shape[1:]), seed=seed, stream=Stream.FINITE_DIFFERENCE
        )
        maps, limit = prepared_maps()
        per_pass = max(size, limit * size // _IN_MEMORY)
        x, y = images[start:stop], labels[start:stop]
        return _of_images(maps, loss, x, y, probes.to(images.device), steps, per_pass)

    with admitted(model, images, output=output) as network:
        images = in_layout_of(network, images)
        blocks = list(in_blocks(compute, len(images), max(batch_size or _IN_MEMORY, SMALLEST_PASS)))
    values = torch.cat([torch.empty(len(steps), 4, 0, dtype=torch.float64), *blocks], dim=2)
    if normalisation == "per_step":
        powers = torch.tensor([[h, h, h**2, h**2] for h in steps], dtype=torch.float64)
        values = values / powers[:, :, None]
    return dict(zip(names, (values / batch_lengths).flatten(0, 1), strict=True))


def _of_images(
    maps: Network, loss: Loss, images: Tensor, labels: Tensor, probes: Tensor, steps: Sequence[float], size: int
) -> Tensor:
    """Norm, its error, directional value and its error of the summed loss, float64 (steps, 4, B) on the CPU.

    Args:
        maps: of a frozen network.
        loss: of its outputs.
        images: (B, *shape).
        labels: (B,).
        probes: int8 (B, P, *shape).
        steps: S of them.
        size: images per pass. An image is moved in 1 + S P ways, which together fill passes of that size.
    """
    num_images, num_probes = probes.shape[:2]
    signs = probes.to(images.dtype)
    ways = torch.cat([images[:, None], *(images[:, None] + h * signs for h in steps)], dim=1)
    num_ways = ways.shape[1]
    moved, repeated = ways.flatten(0, 1), labels.repeat_interleave(num_ways)
    gradients = torch.cat(
        [
            _gradient(maps, loss, moved[first : first + size], repeated[first : first + size], size)
            for first in range(0, len(moved), size)
        ]
    ).view(num_images, num_ways, -1)
    unmoved, signs = gradients[:, :1], signs.flatten(2)
    values = []
    for number, h in enumerate(steps):
        first = 1 + number * num_probes
        change = gradients[:, first : first + num_probes] - unmoved
        values += [*mean_and_error(torch.linalg.vector_norm(change, dim=-1, dtype=torch.float64))]
        values += [*mean_and_error(h * (change * signs).sum(-1, dtype=torch.float64))]
    return torch.stack(values).unflatten(0, (len(steps), 4)).cpu()


def _gradient(maps: Network, loss: Loss, images: Tensor, labels: Tensor, size: int) -> Tensor:
    """The gradient (B, D) of each image's loss in the image, in a pass of up to ``size`` images."""
    shape = size if images.is_cuda else min(size, SMALLEST_PASS)
    at = maps.forward(padded(images, shape))
    require_finite(at.logits)
    residual = loss.gradient(at.logits, padded(labels, shape))
    gradient = at.pull_back(residual[:, None].to(at.logits.dtype)).squeeze(1)
    return gradient[: len(images)].flatten(1)


def _batch_lengths(normalisation: str, mean_batch_size: int | None, num_images: int) -> Tensor:
    """What each image's value is divided by: the length of its batch for "mean", else 1; float64 (N,)."""
    if normalisation not in get_args(Normalisation):
        raise UserError(
            f"there is no normalisation {normalisation!r}; choose from {', '.join(get_args(Normalisation))}"
        )
    lengths = torch.ones(num_images, dtype=torch.float64)
    if normalisation != "mean":
        if mean_batch_size is not None:
            raise UserError(f"mean_batch_size belongs to the normalisation 'mean', not to {normalisation!r}")
        return lengths
    if mean_batch_size is None or mean_batch_size < 1:
        raise UserError("the normalisation 'mean' needs mean_batch_size, the images per batch it shall reproduce")
    for start in range(0, num_images, mean_batch_size):
        batch = lengths[start : start + mean_batch_size]
        batch.fill_(len(batch))
    return lengths
