"""The exact trace of the Hessian in the parameters, by layer and by image, in C - 1 backward passes (C: squared error).

Where each logit is piecewise linear in every single parameter (ReLU, max-pooling, convolutions, linear layers,
BatchNorm in eval mode, sums), its second derivative in that parameter is zero almost everywhere, so the diagonals of H
and of the generalised Gauss-Newton matrix agree:

    trace H = (1/N) sum over images of trace J^T S J = (1/N) sum over images of ||V^T J||_F^2,

J = d logits / d parameters (C x P), V V^T = S, the Hessian of the loss in the logits: diag p - p p^T with V of C - 1
columns for the cross-entropy, 2/C with C columns for the squared error (Dangel, Kunstner & Hennig 2020, "BackPACK",
DiagGGNExact). V^T J is never built: the squared norms of a layer's weight gradients come per image from the
layer's input and its output's cotangents (``layer_gradients``). BatchNorm in training mode or a smooth activation
breaks the identity (by +160 % and +104 % where that was measured), so such networks are refused.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from dd_core.curvature.copies import Output
from dd_core.curvature.evaluation import logits_of
from dd_core.curvature.input_space.autograd_backward import differs
from dd_core.curvature.input_space.linearized import LinearizedNetwork, NotLinearizableError
from dd_core.curvature.network import as_tensors, prepared
from dd_core.curvature.parameter_space.batches import Batches
from dd_core.curvature.parameter_space.layer_gradients import GramMatrix, LayerVisitor, SquaredNorms
from dd_core.curvature.parameter_space.layers import choose_layers
from dd_core.curvature.second_derivatives import second_derivatives
from dd_core.errors import UserError
from dd_core.tasks.losses import CROSS_ENTROPY, Loss
from dd_core.tasks.output_hessian import OutputHessian

# Pixels that go back together, images times cotangents times pixels of an image: enough to keep the device busy.
_PIXELS = {"cpu": 1 << 19, "cuda": 1 << 24}


@dataclass(frozen=True)
class ExactTrace:
    """Traces of the per-image Hessians of the loss, nats per squared parameter unit.

    Attributes:
        per_image: float64 (N,), over all chosen layers.
        per_layer: mean over the images of each chosen layer's share; they add up to the mean of ``per_image``.
    """

    per_image: np.ndarray
    per_layer: dict[str, float]


@second_derivatives()
def exact_trace(
    model: nn.Module,
    images: Tensor,
    *,
    layers: tuple[str, ...] = (),
    batch_size: int = 250,
    dtype: torch.dtype = torch.float32,
    output: Output = None,
    loss: Loss = CROSS_ENTROPY,
) -> ExactTrace:
    """The exact trace; labels play no part in it.

    Args:
        model: a plain piecewise linear network in eval mode, (B, ...) to logits (B, C).
        images: (N, ...).
        layers: names or regular expressions, see ``choose_layers``; none for all.
        batch_size: at most so many images at a time; it changes the memory, not the result.
        dtype: of the passes; norms are added up in float64.
        output: which of the model's outputs are the logits, where it gives several.
        loss: one whose Hessian in the outputs depends on no label.

    Raises:
        UserError: the model is not of that kind, a pattern matches no layer, or the loss does not tell its Hessian.
    """
    images, _ = as_tensors(images, (), model)
    if len(images) == 0:
        raise UserError("there are no images, so there is no loss; pass at least one")
    model = prepared(model, images, output=output)
    wanted, (device, weights_dtype) = choose_layers(model, layers).names, _place(model)
    network = _linearized(model, dtype, images)
    with torch.no_grad():
        outputs = logits_of(model, images[:1].to(device, weights_dtype))
    num_cotangents = _output_hessian(loss, outputs).roots.shape[1]
    most = _PIXELS.get(device.type, 1 << 19) // max(1, images[0, 0].numel() * num_cotangents)
    batches = Batches(images, torch.empty(len(images), 0), min(batch_size, most), device, weights_dtype)

    def work(batch: Tensor, _: Tensor) -> Tensor:
        norms = SquaredNorms(wanted)
        scale = _pull_back(network, batch, loss, norms)
        return scale.square() * torch.stack([norms.by_layer[name] for name in wanted])

    traces = torch.cat(list(batches.map(work)), dim=1).cpu()  # (layers, N)
    return ExactTrace(traces.sum(0).numpy(), dict(zip(wanted, traces.mean(1).tolist(), strict=True)))


@second_derivatives()
def ggn_eigenvalues(
    model: nn.Module,
    images: Tensor,
    *,
    layers: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    loss: Loss = CROSS_ENTROPY,
) -> np.ndarray:
    """All non-zero eigenvalues of the generalised Gauss-Newton matrix of a few images, exactly.

    They are those of the Gram matrix K K^T / N, K = the N M rows V^T J of all images for V of M columns: cheap up to
    about 2,000 rows. Late in training they are close to the Hessian's largest (Papyan 2018, "The full spectrum of
    deepnet Hessians").

    Args:
        model: as for ``exact_trace``.
        images: (N, ...), all in one batch: memory for N M gradients of the largest layer is needed.
        layers: names or regular expressions; none for all.
        dtype: of the passes and the products.
        loss: as for ``exact_trace``.

    Returns:
        float64 (N M,), descending.

    Raises:
        UserError: as for ``exact_trace``.
    """
    images, _ = as_tensors(images, (), model)
    model = prepared(model, images)
    network, (device, weights_dtype) = _linearized(model, dtype, images), _place(model)
    gram = GramMatrix(choose_layers(model, layers).names)
    scale = _pull_back(network, images.to(device, weights_dtype), loss, gram)
    rows = scale.repeat_interleave(len(gram.matrix) // len(images))
    matrix = gram.matrix * rows * rows[:, None] / len(images)
    return torch.linalg.eigvalsh(matrix).flip(0).clamp(min=0).cpu().numpy()


def _pull_back(network: LinearizedNetwork, images: Tensor, loss: Loss, visitor: LayerVisitor) -> Tensor:
    """Send V's columns back through the network, each image's divided by a number of its own, float64 (B,), returned.

    The division keeps saturated images, whose columns are tiny, from vanishing in float32.
    """
    try:
        point = network.forward(images, keep_inputs=True)
    except NotLinearizableError as error:
        raise UserError(_refusal(error)) from error
    if not torch.isfinite(point.logits).all():
        raise UserError("the model's output is not finite (NaN or infinite weights?), so its Hessian does not exist")
    hessian = _output_hessian(loss, point.logits)
    scale = hessian.roots.amax(1).clamp(min=torch.finfo(torch.float64).tiny)
    columns = hessian.directions * (hessian.roots / scale[:, None])[..., None]
    point.pull_back(columns, visitor)
    visitor.require_all()
    return scale


def _output_hessian(loss: Loss, outputs: Tensor) -> OutputHessian:
    hessian = loss.output_hessian(outputs, torch.zeros(len(outputs), dtype=torch.int64, device=outputs.device))
    if hessian is None:
        raise UserError(
            f"the exact trace needs the Hessian of the loss in the outputs, which {type(loss).__name__} does not tell; "
            "leave exact_trace out of the quantities"
        )
    return hessian


def _linearized(model: nn.Module, dtype: torch.dtype, images: Tensor) -> LinearizedNetwork:
    if len(list(model.named_parameters(remove_duplicate=False))) != len(list(model.parameters())):
        raise UserError(
            "layers of the model share weights, so the logits are not linear in each of them and the exact trace does "
            "not exist; estimate it by hutchinson or hutch_plus_plus and leave exact_trace out of the quantities"
        )
    device, weights_dtype = _place(model)
    try:
        network = LinearizedNetwork(model, dtype)
        tried = images[:2].to(device, weights_dtype)
        if differs(network.forward(tried), model, tried):
            raise NotLinearizableError("its forward pass does more than its graph shows, such as a hook")
        return network
    except NotLinearizableError as error:
        raise UserError(_refusal(error)) from error


def _refusal(error: NotLinearizableError) -> str:
    return (
        f"the exact trace needs a network that is piecewise linear in its parameters, and {error}; "
        "leave exact_trace out of the quantities"
    )


def _place(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    first = next(model.parameters())
    return first.device, first.dtype
