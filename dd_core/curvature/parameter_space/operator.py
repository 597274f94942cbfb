"""The Hessian of a network's mean loss in its parameters, as a linear operator over a whole data set.

``HessianOperator`` is a ``CurvatureOperator`` of hessian-eigenthings 1.0.0a5, so every algorithm of that package runs
on it. Its own operator averages batches without weighting them by their size (with 64 + 6 images Hv is off by 140 %),
rebuilds the graph for every vector and, under torch.distributed, assumes equal shares. Here the sum over images is
divided once by their number, and one graph serves all vectors of a pass (Pearlmutter 1994, "Fast exact multiplication
by the Hessian": Hv is the derivative of g(theta) along v; here the gradient of g . v with the graph of g kept).
"""

import contextlib
import logging
from typing import Any

import torch
from hessian_eigenthings.operators.base import CurvatureOperator
from torch import Tensor, nn

from dd_core.curvature.copies import Output
from dd_core.curvature.evaluation import logits_of
from dd_core.curvature.guard import require_second_derivative
from dd_core.curvature.network import as_tensors, prepared
from dd_core.curvature.parameter_space.batches import Batches
from dd_core.curvature.parameter_space.distributed import Group, agreeing, sum_over
from dd_core.curvature.parameter_space.layers import ChosenLayers, choose_layers
from dd_core.curvature.parameter_space.twice_differentiable import TwiceDifferentiable
from dd_core.curvature.second_derivatives import second_derivatives
from dd_core.errors import UserError
from dd_core.models.strided_pointwise import SoundConvolutions
from dd_core.tasks.losses import CROSS_ENTROPY, Loss

_LOG = logging.getLogger(__name__)


class HessianOperator(CurvatureOperator):
    """H = (1/N) sum of the Hessians of all N images' losses, restricted to chosen layers; symmetric (P, P).

    Attributes:
        loss: of an image, from the network's outputs.
        network: a private copy of the model in eval mode; the model itself is never touched.
        layers: the chosen layers and their parameters, P numbers in all.
        batches: this process's images.
        num_images: N, over all processes.
        block_size: vectors that share a pass over the images.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        *,
        layers: tuple[str, ...] = (),
        batch_size: int = 250,
        block_size: int = 8,
        dtype: torch.dtype = torch.float32,
        group: Group | None = None,
        output: Output = None,
        loss: Loss = CROSS_ENTROPY,
    ):
        """Copy the model.

        Args:
            model: in eval mode, (B, ...) to logits (B, classes).
            images: (N, ...), of any device; with a group, this rank's share.
            labels: int64 (N,). NumPy arrays will do for both.
            layers: names or regular expressions, see ``choose_layers``.
            batch_size: images per pass; it changes the memory, not the result.
            block_size: vectors multiplied in one pass over the images.
            dtype: of weights, images and vectors.
            group: of the processes that share the images; None: this process has them all.
            output: which of the model's outputs are the logits, where it gives several.
            loss: that is averaged over the images.

        Raises:
            UserError: the model is in training mode, is no fixed function of one image or has no right second
                derivative, weights are not finite, images or labels do not fit (on every rank if it is so on one), or a
                pattern matches no layer. See docs/networks.md.
        """
        self.block_size, self.group, self._dtype, self.loss = block_size, group, dtype, loss
        images, labels = as_tensors(images, labels, model)
        self._device = next((p.device for p in model.parameters()), images.device)
        with agreeing(group, self._device):
            _check_data(images, labels)
            _require_finite(model)
            self.network = prepared(model, images, output=output, dtype=dtype, in_parameters=True)
            self.layers: ChosenLayers = choose_layers(self.network, layers)
            _say_what_is_left_out(self.layers)
            self._parameters = list(self.layers.parameters.values())
            self.network.requires_grad_(False)
            for parameter in self._parameters:
                parameter.requires_grad_(True)
            self.batches = Batches(images, labels, batch_size, self._device, dtype)
            _check_classes(self.network, self.batches)
            tried = images[[0, -1]].to(self._device, dtype)
            require_second_derivative(self.network, tried, self.layers.parameters)
        self.num_images = int(sum_over(group, torch.tensor([len(images)], device=self._device)))
        self._kept: tuple[Tensor, ...] | None = None  # the graph, where one batch holds all images

    @property
    def size(self) -> int:
        """Number of parameters P."""
        return self.layers.num_parameters

    @property
    def device(self) -> torch.device:
        """Where vectors live."""
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of vectors."""
        return self._dtype

    def matvec(self, v: Tensor) -> Tensor:
        """H v for one vector (P,)."""
        return self.matmat(v[None])[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """H v for every row v of (m, P); as many rows as ``block_size`` share a pass over the images."""
        return torch.cat([self._one_pass(block) for block in vectors.split(self.block_size)])

    def _one_pass(self, vectors: Tensor) -> Tensor:
        with second_derivatives():
            total = torch.zeros_like(vectors)
            for products in self.batches.map(lambda images, labels: self._products(images, labels, vectors)):
                total += products
            return sum_over(self.group, total).div_(self.num_images)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The mean loss in nats and its gradient (P,)."""
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        gradient = torch.zeros(self.size, dtype=self._dtype, device=self._device)
        with second_derivatives():
            for own_loss, own_gradient in self.batches.map(self._loss_and_gradient):
                loss += own_loss
                gradient += own_gradient
        sum_over(self.group, loss)
        return float(loss) / self.num_images, sum_over(self.group, gradient).div_(self.num_images)

    def _loss_and_gradient(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        loss, gradients = self._gradient(images, labels, create_graph=False)
        return loss.detach(), _flat(gradients)

    def _gradient(self, images: Tensor, labels: Tensor, create_graph: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The loss summed over the images, and its gradient by parameter, to be differentiated again if asked for."""
        # The later mode sees a call first, and hands on what it makes of it.
        again = TwiceDifferentiable() if create_graph else contextlib.nullcontext()
        with again, SoundConvolutions(), torch.enable_grad():
            logits = logits_of(self.network, images)
            # The loss in float64 keeps saturated images exact; it is small work.
            loss = self.loss.total(logits.double(), labels)
        if not loss.requires_grad:  # it depends on no chosen parameter
            return loss, tuple(torch.zeros_like(parameter) for parameter in self._parameters)
        return loss, torch.autograd.grad(loss, self._parameters, create_graph=create_graph, materialize_grads=True)

    def _products(self, images: Tensor, labels: Tensor, vectors: Tensor) -> Tensor:
        if not self.batches.is_single:
            self._kept = None  # memory ran out since it was made
        gradients = self._kept or self._gradient(images, labels, create_graph=True)[1]
        if self.batches.is_single:
            self._kept = gradients
        varying = [index for index, gradient in enumerate(gradients) if gradient.requires_grad]
        products = torch.zeros_like(vectors)
        for row, vector in enumerate(vectors if varying else ()):
            parts = self.split(vector)
            is_last = row == len(vectors) - 1 and self._kept is None
            product = torch.autograd.grad(
                [gradients[index] for index in varying],
                self._parameters,
                [parts[index] for index in varying],
                retain_graph=not is_last,
                materialize_grads=True,
            )
            products[row] = _flat(product)
        return products

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector (P,) as tensors of the parameters' shapes."""
        parts = vector.split([parameter.numel() for parameter in self._parameters])
        return [part.view(parameter.shape) for part, parameter in zip(parts, self._parameters, strict=True)]


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


def _require_finite(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not torch.isfinite(tensor.detach()).all():
            raise UserError(f"{name} has NaN or infinite values, so the Hessian does not exist; use another checkpoint")


def _say_what_is_left_out(layers: ChosenLayers) -> None:
    """Frozen parameters are no rows of the Hessian."""
    if layers.frozen:
        _LOG.warning(
            "the Hessian leaves out %d frozen parameters (requires_grad=False): %s",
            len(layers.frozen),
            ", ".join(layers.frozen),
        )


def _check_data(images: Tensor, labels: Tensor) -> None:
    """Refuse images and labels that cannot belong together.

    Raises:
        UserError: they do not.
    """
    if len(images) == 0:
        raise UserError("there are no images, so there is no loss; pass at least one")
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        raise UserError(
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"{len(images)} images need int64 labels of shape ({len(images)},)"
        )
    if not torch.isfinite(images).all():
        raise UserError("images have NaN or infinite values; clean the data set")


def _check_classes(network: nn.Module, batches: Batches) -> None:
    """Refuse labels that the network has no class for.

    Raises:
        UserError: it has none.
    """
    images = batches.images[:1].to(batches.device, batches.dtype)
    with torch.no_grad():
        classes = logits_of(network, images).shape[1]
    lowest, highest = int(batches.labels.min()), int(batches.labels.max())
    if lowest < 0 or highest >= classes:
        raise UserError(
            f"labels reach from {lowest} to {highest}, but the network has {classes} classes, 0 to {classes - 1}"
        )
