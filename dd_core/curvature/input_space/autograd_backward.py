"""The same affine map as ``linearized``, by automatic differentiation: slower, for any network."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from dd_core.curvature.input_space.exact import Linearized
from dd_core.errors import UserError


@dataclass
class AutogradLinearization:
    """A network at a batch of images, with its graph."""

    logits: Tensor
    images: Tensor
    output: Tensor
    classifier_weight: Tensor | None = None
    chosen: Tensor | None = None

    def of(self, images: Tensor) -> "AutogradLinearization":
        """The map at some of the images, int64 (n,), in that order."""
        return replace(self, logits=self.logits[images], chosen=images if self.chosen is None else self.chosen[images])

    def pull_back(self, cotangents: Tensor) -> Tensor:
        """J^T applied to (B, m, C), one backward pass for each of the m: (B, m, *image shape)."""
        every = slice(None) if self.chosen is None else self.chosen
        rows = []
        for number in range(cotangents.shape[1]):
            vector = torch.zeros_like(self.output)
            vector[every] = cotangents[:, number].to(vector.dtype)
            (row,) = torch.autograd.grad(self.output, self.images, vector, retain_graph=True)
            rows.append(row[every])
        return torch.stack(rows, dim=1)

    def pull_back_groups(self, cotangents: Sequence[Tensor]) -> list[Tensor]:
        """The same for consecutive groups of the images, each with its own m."""
        starts = [0, *itertools.accumulate(len(part) for part in cotangents)]
        chosen = torch.arange(len(self.output), device=self.output.device) if self.chosen is None else self.chosen
        return [
            replace(self, chosen=chosen[start : start + len(part)]).pull_back(part)
            for start, part in zip(starts, cotangents, strict=False)
        ]

    def pull_back_features(self, cotangents: Tensor) -> Tensor:
        """Never asked for: where ``classifier_weight`` is None, every method starts from the logits."""
        raise NotImplementedError("automatic differentiation starts from the logits")


class AutogradNetwork:
    """A network in eval mode whose parameters are frozen."""

    def __init__(self, model: nn.Module):
        """Keep the network."""
        self.model = model

    def forward(self, images: Tensor) -> AutogradLinearization:
        """Run it at images (B, ...).

        Raises:
            UserError: its output does not depend on them differentiably.
        """
        with torch.enable_grad():
            source = images.detach().requires_grad_(True)
            output = self.model(source)
        if not output.requires_grad:
            raise UserError(
                "the model gives no gradient back to the images (torch.no_grad(), detach() or NumPy in a forward pass?"
                "), so it has no curvature in them"
            )
        return AutogradLinearization(output.detach(), source, output)


def differs(linearized: Linearized, model: nn.Module, images: Tensor) -> bool:
    """Whether another linearisation at the same images has other logits or another Jacobian than autograd's.

    The Jacobians are compared along one random cotangent of each image: rounding (to bfloat16, too) stays far below the
    5 % allowed, and what a graph does not show (a layer that overwrites what others read, a hook) far above.

    Args:
        linearized: at ``images``.
        model: in eval mode.
        images: (B, ...).
    """
    reference = AutogradNetwork(model).forward(images)
    generator = torch.Generator().manual_seed(0)
    cotangent = torch.randn(len(images), 1, reference.logits.shape[1], generator=generator).to(images.device)
    ours, theirs = linearized.pull_back(cotangent).to(images.dtype), reference.pull_back(cotangent)
    pairs = ((linearized.logits, reference.logits, 1e-3), (ours, theirs, 0.05))
    return any(bool((a - b).norm() > allowed * b.norm()) for a, b, allowed in pairs)
