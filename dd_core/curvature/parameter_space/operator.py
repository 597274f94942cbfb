"""The Hessian of a network's mean cross-entropy in its parameters, as a linear operator over a whole data set.

``HessianOperator`` is a ``CurvatureOperator`` of hessian-eigenthings 1.0.0a5, so every algorithm of that package runs
on it. Its own operator averages batches without weighting them by their size (with 64 + 6 images Hv is off by 140 %),
rebuilds the graph for every vector and, under torch.distributed, assumes equal shares. Here the sum over images is
divided once by their number, and one graph serves all vectors of a pass (Pearlmutter 1994, "Fast exact multiplication
by the Hessian": Hv is the derivative of g(theta) along v; here the gradient of g . v with the graph of g kept).
"""

import copy
from typing import Any

import torch
from hessian_eigenthings.operators.base import CurvatureOperator
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dd_core.curvature.parameter_space.batches import Batches
from dd_core.curvature.parameter_space.distributed import Group, sum_over
from dd_core.curvature.parameter_space.layers import ChosenLayers, choose_layers
from dd_core.errors import UserError
from dd_core.models.strided_pointwise import SoundConvolutions


class HessianOperator(CurvatureOperator):
    """H = (1/N) sum of the Hessians of all N images' losses, restricted to chosen layers; symmetric (P, P).

    Attributes:
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
    ):
        """Copy the model.

        Args:
            model: in eval mode, (B, ...) to logits (B, classes).
            images: (N, ...), of any device; with a group, this rank's share.
            labels: int64 (N,).
            layers: names or regular expressions, see ``choose_layers``.
            batch_size: images per pass; it changes the memory, not the result.
            block_size: vectors multiplied in one pass over the images.
            dtype: of weights, images and vectors.
            group: of the processes that share the images; None: this process has them all.

        Raises:
            UserError: the model is in training mode, weights are not finite, images or labels do not fit (on every
                rank if it is so on one), or a pattern matches no layer.
        """
        _require_eval(model)
        self.network = copy.deepcopy(model).to(dtype).requires_grad_(False)
        _require_finite(self.network)
        self.layers: ChosenLayers = choose_layers(self.network, layers)
        self._parameters = list(self.layers.parameters.values())
        for parameter in self._parameters:
            parameter.requires_grad_(True)
        self._dtype, self._device = dtype, self._parameters[0].device
        self.block_size = block_size
        self.group = group
        self.batches = Batches(images, labels, batch_size, self._device, dtype)
        self._kept: tuple[Tensor, ...] | None = None  # the graph, where one batch holds all images
        problem = _problem_of(self.network, self.batches)
        counts = torch.tensor([len(images), int(problem is not None)], dtype=torch.int64, device=self._device)
        self.num_images, num_problems = (int(count) for count in sum_over(group, counts))
        if problem is not None:
            raise UserError(problem)
        if num_problems:
            raise UserError(
                f"the images or labels of {num_problems} other processes cannot be used; see their messages"
            )

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
        """Of vectors."""
        return self._dtype

    def matvec(self, v: Tensor) -> Tensor:
        """H v for one vector (P,)."""
        return self.matmat(v[None])[0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """H v for every row v of (m, P); as many rows as ``block_size`` share a pass over the images."""
        return torch.cat([self._one_pass(block) for block in vectors.split(self.block_size)])

    def _one_pass(self, vectors: Tensor) -> Tensor:
        total = torch.zeros_like(vectors)
        for products in self.batches.map(lambda images, labels: self._products(images, labels, vectors)):
            total += products
        return sum_over(self.group, total).div_(self.num_images)

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """The mean cross-entropy in nats and its gradient (P,)."""
        loss = torch.zeros((), dtype=torch.float64, device=self._device)
        gradient = torch.zeros(self.size, dtype=self._dtype, device=self._device)
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
        with SoundConvolutions():
            logits = self.network(images)
        # The softmax in float64 keeps saturated images exact; it is small work.
        loss = cross_entropy(logits.double(), labels, reduction="sum")
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


def _require_eval(model: nn.Module) -> None:
    training = next((name for name, module in model.named_modules() if module.training), None)
    if training is not None:
        what = f"layer {training!r} of the model" if training else "the model"
        raise UserError(f"{what} is in training mode, where images influence each other; call model.eval() first")


def _require_finite(model: nn.Module) -> None:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if not torch.isfinite(tensor).all():
            raise UserError(f"{name} has NaN or infinite values, so the Hessian does not exist; use another checkpoint")


def _problem_of(network: nn.Module, batches: Batches) -> str | None:
    """What is wrong with the images and labels, as one sentence."""
    images, labels = batches.images, batches.labels
    if len(images) == 0:
        return "there are no images, so there is no loss; pass at least one"
    if labels.shape != (len(images),) or labels.dtype != torch.int64:
        return (
            f"labels are {labels.dtype} of shape {tuple(labels.shape)}; "
            f"{len(images)} images need int64 labels of shape ({len(images)},)"
        )
    if not torch.isfinite(images).all():
        return "images have NaN or infinite values; clean the data set"
    try:
        with torch.no_grad():
            logits = network(images[:1].to(batches.device, batches.dtype))
    except (RuntimeError, ValueError) as error:
        return f"images of shape {tuple(images.shape[1:])} do not go through the network ({str(error).splitlines()[0]})"
    if logits.ndim != 2:
        return f"the network's output has shape {tuple(logits.shape)} for one image; logits (1, classes) are needed"
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        return (
            f"labels reach from {int(labels.min())} to {int(labels.max())}, "
            f"but the network has {logits.shape[1]} classes, 0 to {logits.shape[1] - 1}"
        )
    return None
