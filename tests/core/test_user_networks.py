"""Networks of users: right numbers, against finite differences of gradients in float64, or one sentence."""

import collections
import dataclasses
import itertools
import logging
import threading
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy
from torch.nn.utils import parametrizations, prune
from torch.utils.checkpoint import checkpoint
from torchvision.models import VisionTransformer

from dd_core.curvature import finite_difference_curvature, per_image_curvature
from dd_core.curvature.guard import require_function_of_one_image
from dd_core.curvature.input_space.double_backward import double_backward_curvature
from dd_core.curvature.parameter_space import (
    HessianOperator,
    analyse_hessian,
    exact_trace,
    ggn_eigenvalues,
    gradient_sums,
)
from dd_core.errors import UserError
from dd_core.study.hessian import HessianSettings

LABELS = torch.tensor([0, 1, 3])


def images(number: int = 3) -> Tensor:
    """Float64 (number, 3, 2, 2)."""
    return torch.randn(number, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def plain(activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """12 inputs, 8 hidden units, 4 classes."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), activation(), nn.Linear(8, 4)).double().eval()


class _Net(nn.Module):
    """A function of the hidden units between two linear layers."""

    def __init__(self, function: Callable[[Any, Tensor], Any], activation: Callable[[], nn.Module] = nn.Tanh):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), activation())
        self.function, self.head = function, nn.Linear(8, 4)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.function(self, self.body(x)))
        return result


class _Ends(nn.Module):
    """A function of the logits of a piecewise linear network."""

    def __init__(self, function: Callable[[Tensor], Any]):
        super().__init__()
        self.net, self.function = plain(nn.ReLU), function
        self.eval()

    def forward(self, x: Tensor) -> Any:
        return self.function(self.net(x))


def changed(change: Callable[[Any], object], model: nn.Module | None = None) -> nn.Module:
    model = model or plain()
    change(model)
    return model.double().eval()


def hessian_of(function: Callable[[Tensor], Tensor], point: Tensor, step: float = 1e-5) -> Tensor:
    """By central differences of the gradient, (D, D)."""

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_(True)
        return torch.autograd.grad(function(x), x)[0]

    flat = point.detach().reshape(-1)
    rows = [gradient(flat + step * e) - gradient(flat - step * e) for e in torch.eye(len(flat), dtype=flat.dtype)]
    return torch.stack(rows) / (2 * step)


def hessian_in_image(model: nn.Module, image: Tensor, label: Tensor, step: float = 1e-5) -> Tensor:
    return hessian_of(lambda x: cross_entropy(model(x.clone().view(1, *image.shape)), label[None]), image, step)


def hessian_in_parameters(model: nn.Module, x: Tensor, labels: Tensor, names: list[str] | None = None) -> Tensor:
    """Of the mean loss, in distinct parameters, or some of them."""
    chosen = [p for name, p in model.named_parameters() if names is None or name in names]
    before = torch.cat([p.detach().reshape(-1) for p in chosen])

    def put(values: Tensor) -> None:
        for p, part in zip(chosen, values.split([p.numel() for p in chosen]), strict=True):
            p.data = part.view(p.shape)

    def gradient(values: Tensor) -> Tensor:
        put(values)
        loss = cross_entropy(model(x.clone()), labels)
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, chosen, materialize_grads=True)])

    rows = [gradient(before + 1e-5 * e) - gradient(before - 1e-5 * e) for e in torch.eye(len(before)).double()]
    put(before)
    return torch.stack(rows) / 2e-5


def matrix(operator: HessianOperator) -> Tensor:
    return operator.matmat(torch.eye(operator.size, dtype=operator.dtype))


def assert_right_in_both_spaces(model: nn.Module) -> None:
    """Every estimator that takes the network agrees with finite differences of gradients."""
    x = images()
    ours = double_backward_curvature(model, x, LABELS, torch.arange(3), lanczos_steps=12)
    dense = torch.stack([hessian_in_image(model, i, y) for i, y in zip(x, LABELS, strict=True)])
    torch.testing.assert_close(ours["trace"], dense.diagonal(dim1=1, dim2=2).sum(1), rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(ours["frobenius_norm"], dense.flatten(1).norm(dim=1), rtol=1e-5, atol=1e-8)
    by_choice = per_image_curvature(model, x, LABELS, num_probes=200)
    off = (by_choice.columns["trace"] - ours["trace"]).abs()
    assert (off <= 6 * by_choice.columns["trace_standard_error"] + 1e-8).all()
    operator = HessianOperator(model, x, LABELS, dtype=torch.float64)
    torch.testing.assert_close(matrix(operator), hessian_in_parameters(model, x, LABELS), rtol=1e-5, atol=1e-7)


# Tied weights, frozen weights


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.h = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False), nn.Linear(5, 4)
        self.b.weight = self.a.weight
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.h(F.relu(self.b(F.relu(self.a(x)))))
        return result


def test_tied_weights_count_once() -> None:
    model, x, labels = _Tied(), torch.randn(6, 5).double(), torch.arange(6) % 4
    operator = HessianOperator(model, x, labels, dtype=torch.float64)
    assert operator.size == 25 + 24
    expected = hessian_in_parameters(model, x, labels)
    torch.testing.assert_close(matrix(operator), expected, rtol=1e-5, atol=1e-7)
    only = HessianOperator(model, x, labels, layers=("b",), dtype=torch.float64)
    torch.testing.assert_close(matrix(only), expected[:25, :25], rtol=1e-5, atol=1e-7)
    with pytest.raises(UserError, match=r"share weights.*estimate it by hutchinson or hutch_plus_plus"):
        exact_trace(model, x)
    with pytest.raises(UserError, match=r"'b.weight' is used more than once"):
        gradient_sums(model, x, labels)
    settings = HessianSettings(
        quantities=("hutchinson", "eigenvalues", "gradient"), hutchinson_probes=400, precision="float64"
    )
    found = analyse_hessian(model, x, labels, settings)
    assert found.eigenvalues is not None
    assert found.eigenvalues[0] == pytest.approx(torch.linalg.eigvalsh(expected)[-1].item(), rel=1e-5)
    assert found.trace_hutchinson is not None
    assert found.trace_hutchinson_error is not None
    assert abs(found.trace_hutchinson - expected.trace().item()) < 5 * found.trace_hutchinson_error


def test_a_layer_used_twice_has_wrong_norms_in_backpack_and_is_refused() -> None:
    model = _Net(lambda m, h: m.again(m.again(h)), nn.ReLU)
    model.again = nn.Linear(8, 8).double()
    with pytest.raises(UserError, match=r"'again.weight' is used more than once"):
        gradient_sums(model.eval(), images(), LABELS)


def test_frozen_parameters_are_left_out_and_said(caplog: pytest.LogCaptureFixture) -> None:
    model, x = plain(nn.ReLU), images()
    model[1].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    expected = hessian_in_parameters(model.requires_grad_(True), x, LABELS, ["1.bias", "3.weight"])
    model[1].weight.requires_grad_(False)
    model[3].bias.requires_grad_(False)
    with caplog.at_level(logging.WARNING):
        operator = HessianOperator(model, x, LABELS, dtype=torch.float64)
    assert "leaves out 2 frozen parameters (requires_grad=False): 1.weight, 3.bias" in caplog.text
    assert operator.layers.frozen == ("1.weight", "3.bias")
    torch.testing.assert_close(matrix(operator), expected, rtol=1e-5, atol=1e-7)
    trace = exact_trace(model, x, dtype=torch.float64)
    assert trace.per_image.mean() == pytest.approx(expected.trace().item(), rel=1e-5)
    assert ggn_eigenvalues(model, x, dtype=torch.float64).sum() == pytest.approx(expected.trace().item(), rel=1e-5)
    norms = gradient_sums(model, x, LABELS).squared_norms
    for image, label, norm in zip(x, LABELS, norms, strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        gradients = torch.autograd.grad(loss, [model[1].bias, model[3].weight])
        assert norm.item() == pytest.approx(sum(g.square().sum().item() for g in gradients))
    with pytest.raises(UserError, match=r"all parameters .* frozen .* call requires_grad_\(True\)"):
        HessianOperator(model.requires_grad_(False), x, LABELS)


# Attention, normalisations, activations


class _Attends(nn.Module):
    """Two tokens of six values."""

    def __init__(self, attend: Callable[[Any, Tensor], Tensor], **layers: nn.Module):
        super().__init__()
        self.attend, self.head = attend, nn.Linear(6, 4)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.double().eval()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.attend(self, x.flatten(1).unflatten(1, (2, 6))).mean(1))
        return result


def transformer(**options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "function": lambda: _Attends(lambda m, t: F.scaled_dot_product_attention(t, t, t)),
    "MultiheadAttention": lambda: _Attends(
        lambda m, t: m.a(t, t, t, need_weights=False)[0], a=nn.MultiheadAttention(6, 2, batch_first=True)
    ),
    "MultiheadAttention with weights": lambda: _Attends(
        lambda m, t: m.a(t, t, t)[0], a=nn.MultiheadAttention(6, 2, batch_first=True)
    ),
    "TransformerEncoder": lambda: _Attends(lambda m, t: m.e(t), e=transformer()),
    "pre-norm, GELU": lambda: _Attends(lambda m, t: m.e(t), e=transformer(norm_first=True, activation="gelu")),
}


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_has_the_values_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    assert_right_in_both_spaces(ATTENTION[name]())


def test_a_vision_transformer_has_the_values_of_finite_differences() -> None:
    torch.manual_seed(0)
    model = VisionTransformer(4, 2, 2, 2, 8, 8, num_classes=4).eval()
    nn.init.normal_(model.heads.head.weight, std=0.3)
    x = torch.randn(2, 3, 4, 4)
    ours = per_image_curvature(model, x, LABELS[:2], num_probes=100)
    model, x = model.double(), x.double()
    dense = torch.stack([hessian_in_image(model, i, y).trace() for i, y in zip(x, LABELS, strict=False)])
    assert ours.method == "double_backward"
    assert ((ours.columns["trace"] - dense).abs() < 5 * ours.columns["trace_standard_error"]).all()


ACTIVATIONS = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink),
    *(nn.Softshrink, nn.GELU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, nn.Softsign, nn.Tanhshrink),
    *(nn.LogSigmoid, nn.Sigmoid),
)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_exact_or_by_double_backward_and_right(activation: type[nn.Module]) -> None:
    assert_right_in_both_spaces(plain(activation))


OTHERS: dict[str, Callable[[], nn.Module]] = {
    "weight norm": lambda: changed(lambda m: parametrizations.weight_norm(m[1])),
    "weight norm of columns": lambda: changed(lambda m: parametrizations.weight_norm(m[1], dim=1)),
    "weight norm, one": lambda: changed(lambda m: parametrizations.weight_norm(m[1], dim=None)),
    "spectral norm": lambda: changed(lambda m: parametrizations.spectral_norm(m[1])),
    "old spectral norm": lambda: changed(lambda m: nn.utils.spectral_norm(m[1])),
    "orthogonal": lambda: changed(lambda m: parametrizations.orthogonal(m[3], orthogonal_map="cayley")),
    "pruned": lambda: changed(lambda m: prune.random_unstructured(m[1], "weight", 0.3)),
    "hard sigmoid, function": lambda: _Net(lambda m, h: F.hardsigmoid(h)),
    "GLU": lambda: _Net(lambda m, h: torch.cat([F.glu(h), h[:, :4]], 1)),
    "checkpointed": lambda: _Net(lambda m, h: checkpoint(torch.sin, h, use_reentrant=False)),
    "stable softmax": lambda: _Net(lambda m, h: F.softmax(h - h.amax(1, keepdim=True).detach(), 1)),
    "layer norm": lambda: _Net(lambda m, h: F.layer_norm(h, (8,))),
    "in place first": lambda: nn.Sequential(nn.LeakyReLU(0.3, inplace=True), plain()).eval(),
    "hook": lambda: changed(lambda m: m.register_forward_hook(lambda _m, _i, z: z * z)),
    "constant draw": lambda: _Net(lambda m, h: h + 0 * torch.rand_like(h)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_users_build_has_the_values_of_finite_differences(name: str) -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    model = OTHERS[name]()
    x, before = images(), images()
    assert_right_in_both_spaces(model)
    torch.set_rng_state(state)
    with torch.no_grad():
        require_function_of_one_image(model, x)
    assert torch.equal(torch.get_rng_state(), state)  # whoever drew random numbers before draws the same after
    if name != "in place first":
        assert torch.equal(x, before)


@pytest.mark.filterwarnings("ignore:.*torch.nn.utils.weight_norm.*is deprecated:FutureWarning")
def test_old_weight_norm_has_the_values_of_finite_differences() -> None:
    assert_right_in_both_spaces(changed(lambda m: nn.utils.weight_norm(m[1])))


def test_a_pruned_layer_is_no_plain_layer_to_the_exact_trace() -> None:
    model = changed(lambda m: prune.random_unstructured(m[1], "weight", 0.3), plain(nn.ReLU))
    with pytest.raises(UserError, match=r"layer '1' computes its weight from 'weight_orig'"):
        exact_trace(model, images())


# Not a function of one image


class _Block(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def with_block(function: Callable[[Tensor], Tensor]) -> nn.Module:
    model = plain()
    return nn.Sequential(*model[:3], _Block(function), *model[3:]).eval()


MIXING: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "BatchNorm without statistics": (
        lambda: nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), plain()).double().eval(),
        r"layer '0' \(BatchNorm2d\)",
    ),
    "batch_norm in training": (lambda: with_block(lambda h: F.batch_norm(h, None, None, training=True)), "layer '3'"),
    "mean over the batch": (lambda: with_block(lambda h: h - h.mean(0)), "layer '3'"),
    "a little of it": (lambda: with_block(lambda h: h - 0.01 * h.mean(0)), "layer '3'"),
    "some features": (lambda: with_block(lambda h: torch.cat([h[:, :7], h[:, 7:] / h[:, 7:].norm()], 1)), "layer '3'"),
    "attention over the batch": (
        lambda: _Attends(lambda m, t: m.a(t, t, t)[0], a=nn.MultiheadAttention(6, 2)),
        r"layer 'a' \(MultiheadAttention\)",
    ),
    "rolled": (lambda: _Net(lambda m, h: h + h.roll(1, 0)), "the model's own forward pass"),
}
RANDOM: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "dropout": (lambda: _Net(lambda m, h: F.dropout(h, 0.5)), "the model's own forward pass"),
    "rare dropout": (lambda: with_block(lambda h: F.dropout(h, 0.02)), r"layer '3' \(_Block\)"),
    "noise": (lambda: with_block(lambda h: h + 0.01 * torch.randn_like(h)), r"layer '3' \(_Block\)"),
    "counter": (lambda: _Net(lambda m, h: h * next(COUNTER)), "the model's own forward pass"),
}
COUNTER = itertools.count(1)

ENTRANCES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "per image": lambda m, x: per_image_curvature(m, x, LABELS),
    "double backward": lambda m, x: double_backward_curvature(m, x, LABELS, torch.arange(3)),
    "finite difference": lambda m, x: finite_difference_curvature(m, x, LABELS, torch.arange(3)),
    "operator": lambda m, x: matrix(HessianOperator(m, x, LABELS)),
    "exact trace": lambda m, x: exact_trace(m, x),
    "eigenvalues": lambda m, x: ggn_eigenvalues(m, x),
    "gradients": lambda m, x: gradient_sums(m, x, LABELS),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", [*MIXING, *RANDOM])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_no_function_of_one_image_is_refused_everywhere(name: str, entrance: str, dtype: torch.dtype) -> None:
    make, layer = {**MIXING, **RANDOM}[name]
    said = "so images influence each other" if name in MIXING else "something else at every pass"
    with pytest.raises(UserError, match=said) as caught:
        ENTRANCES[entrance](make().to(dtype), images().to(dtype))
    assert str(caught.value).startswith(layer.replace("\\", "")) or layer in str(caught.value).replace("\\", "")
    assert "\n" not in str(caught.value)


# Wrong second derivatives


class _WrongSwish(torch.autograd.Function):
    """Its backward pass takes x for a constant: a symmetric Hessian, but not this function's."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.x = x.detach()
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:  # type: ignore[override]
        s = torch.sigmoid(ctx.x)
        return g * (s + ctx.x * s * (1 - s))


def no_gradient(m: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.sin(h)


def plain_weight_norm(h: Tensor) -> Tensor:
    """PyTorch's fused function, called past our replacement: each row of the length that its first entry says."""
    result: Tensor = torch.ops.aten._weight_norm_interface(h, h[:, :1] + 2)[0]
    return result


WRONG: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "constant in backward": (lambda: with_block(_WrongSwish.apply), r"layer '3' \(_Block\) has a gradient"),
    "plain weight norm": (lambda: with_block(plain_weight_norm), r"layer '3' \(_Block\) has a wrong second derivative"),
    "straight through": (
        lambda: with_block(lambda h: h + (h.round() - h).detach()),
        r"layer '3' \(_Block\) has a grad",
    ),
    "detached factor": (lambda: _Net(lambda m, h: h * torch.sigmoid(h).detach()), "own forward pass .* has a gradient"),
    "no gradient": (lambda: _Net(no_gradient), "no gradient back to the images|has a gradient"),
    "NumPy": (lambda: _Net(lambda m, h: torch.from_numpy(np.sin(h.detach().numpy()))), "NumPy|has a gradient"),
    "reentrant checkpoint": (lambda: _Net(lambda m, h: checkpoint(torch.sin, h, use_reentrant=True)), "no second"),
}


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True:UserWarning")
@pytest.mark.parametrize("entrance", ["per image", "double backward", "operator"])
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_second_derivative_is_refused(name: str, entrance: str) -> None:
    make, said = WRONG[name]
    with pytest.raises(UserError, match=said) as caught:
        ENTRANCES[entrance](make(), images())
    assert "\n" not in str(caught.value)


# Wrappers, outputs, data


def numbers(model: nn.Module, x: Any, labels: Any = LABELS, **options: Any) -> list[Tensor]:
    """The trace in each image, and a product with the Hessian in the parameters."""
    operator = HessianOperator(model, x, labels, dtype=torch.float64, **options)
    columns = per_image_curvature(model, x, labels, **options).columns
    return [columns["trace"], operator.matvec(torch.ones(operator.size, dtype=torch.float64))]


def nested(activation: Callable[[], nn.Module]) -> nn.Module:
    inner = plain(activation)
    outer = nn.Sequential(torch.compile(nn.Sequential(*inner[:3]), backend="aot_eager"), *inner[3:])
    return nn.DataParallel(outer).eval()


def compiled_in_place(activation: Callable[[], nn.Module]) -> nn.Module:
    model = plain(activation)
    model.compile(backend="aot_eager")
    model(images())  # compiled by now
    return model


def compiled_forward(activation: Callable[[], nn.Module]) -> nn.Module:
    model = plain(activation)
    model.forward = torch.compile(model.forward, backend="aot_eager")  # type: ignore[method-assign]
    return model


def made_in_inference_mode(activation: Callable[[], nn.Module]) -> nn.Module:
    with torch.inference_mode():
        return plain(activation)


WRAPPED: dict[str, Callable[[Any], nn.Module]] = {
    "compiled": lambda a: torch.compile(plain(a), backend="aot_eager"),  # type: ignore[dict-item,return-value]
    "parallel": lambda a: nn.DataParallel(plain(a)).eval(),
    "compiled parallel": lambda a: torch.compile(nn.DataParallel(plain(a)).eval(), backend="aot_eager"),  # type: ignore[dict-item,return-value]
    "nested": nested,
    "in place": compiled_in_place,
    "forward": compiled_forward,
    "inference": made_in_inference_mode,
}


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("name", WRAPPED)
def test_wrapped_networks_have_the_numbers_of_the_plain_one(name: str, activation: type[nn.Module]) -> None:
    for ours, expected in zip(numbers(WRAPPED[name](activation), images()), numbers(plain(activation), images())):  # noqa: B905
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_numpy_arrays_and_inference_mode_give_the_same_numbers() -> None:
    model, x = plain(nn.ReLU), images()
    expected = numbers(model, x)
    for labels in (LABELS.numpy(), LABELS.numpy().astype(np.uint8), [0, 1, 3]):
        for ours, theirs in zip(numbers(model, x.numpy()[::1], labels), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    with torch.inference_mode():
        inside = numbers(model, images())
        trace, norms = exact_trace(model, images()).per_image, gradient_sums(model, images(), LABELS).squared_norms
    for ours, theirs in zip(inside, expected, strict=True):
        torch.testing.assert_close(ours.clone(), theirs, rtol=1e-12, atol=0)
    np.testing.assert_allclose(trace, exact_trace(model, x).per_image)
    torch.testing.assert_close(norms.clone(), gradient_sums(model, x, LABELS).squared_norms)
    with pytest.raises(UserError, match="labels must be a tensor or a NumPy array, not dict"):
        per_image_curvature(model, x, {})  # type: ignore[arg-type]


Named = collections.namedtuple("Named", ["logits", "aux"])


@dataclasses.dataclass
class _Record:
    logits: Tensor
    count: int = 3


@pytest.mark.parametrize(
    ("make", "key", "names"),
    [
        (lambda z: {"logits": z, "aux": None}, "logits", "'logits', 'aux'"),
        (lambda z: (z, z.sum()), 0, "0, 1"),
        (lambda z: [z], 0, "0"),
        (lambda z: Named(z, z), "logits", "'logits', 'aux'"),
        (_Record, "logits", "'logits', 'count'"),
    ],
)
def test_of_several_outputs_one_is_named(make: Callable[[Tensor], Any], key: Any, names: str) -> None:
    model = _Ends(make)
    for ours, expected in zip(numbers(model, images(), output=key), numbers(plain(nn.ReLU), images()), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)
    for entrance in ENTRANCES.values():
        with pytest.raises(UserError, match=f"where logits are needed; name them by output=..., one of .*{names}"):
            entrance(model, images())
    with pytest.raises(UserError, match="'nothing' is no tensor in it"):
        per_image_curvature(model, images(), LABELS, output="nothing")
    with pytest.raises(UserError, match="the model gives one tensor; leave output out"):
        HessianOperator(plain(), images(), LABELS, output="logits")


# Nothing but sentences


def broken(error: type[Exception]) -> nn.Module:
    def fail(m: Any, h: Tensor) -> Tensor:
        raise error

    return _Net(fail)


def closed_over() -> nn.Module:
    model = plain(nn.ReLU)
    forward = model.forward
    model.forward = lambda x: forward(x) * 2  # type: ignore[method-assign]
    return model


def autocast_inside(m: Any, h: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return m.body[1](torch.cat([h, h[:, :4]], 1)).to(h.dtype)


SENTENCES: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: "model", "must be a torch.nn.Module, not str"),
    "function": (lambda: torch.sin, "must be a torch.nn.Module, not builtin"),
    "lazy": (lambda: nn.Sequential(nn.Flatten(), nn.LazyLinear(4)).eval(), "has no values yet"),
    "meta": (lambda: plain().to("meta"), "has no values yet"),
    "lock": (lambda: changed(lambda m: setattr(m, "lock", threading.Lock())), "cannot be copied"),
    "training": (lambda: plain().train(), "in training mode"),
    "no tensor": (lambda: _Ends(lambda z: None), "gives a NoneType where logits are needed"),
    "one row": (lambda: _Ends(lambda z: z.sum(0, keepdim=True)), "logits of shape|takes|alone"),
    "squeezed": (lambda: _Ends(torch.squeeze), "takes several images but not one alone"),
    "one at a time": (lambda: _Ends(lambda z: z if len(z) == 1 else z["x"]), "fails, or .*three images at a time"),
    "key": (lambda: _Net(lambda m, h: {}["x"]), "KeyError: 'x'"),
    "attribute": (lambda: _Net(lambda m, h: h.nothing), "AttributeError"),
    "assertion": (lambda: broken(AssertionError), "do not fit the model: AssertionError"),
    "not implemented": (lambda: broken(NotImplementedError), "do not fit the model"),
    "stop": (lambda: broken(StopIteration), "do not fit the model: StopIteration"),
    "constant": (lambda: _Ends(lambda z: torch.ones(len(z), 4, dtype=z.dtype)), ""),
    "reach": (closed_over, "the original's '1.weight'|does more than its graph shows|"),
    "names": (lambda: types.SimpleNamespace(training=False), "must be a torch.nn.Module"),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
@pytest.mark.parametrize("name", SENTENCES)
def test_a_users_network_ends_in_numbers_or_in_one_sentence(name: str, entrance: str) -> None:
    make, said = SENTENCES[name]
    try:
        ENTRANCES[entrance](make(), images())
    except UserError as error:
        assert "\n" not in str(error)
        if said and name != "reach":
            with pytest.raises(UserError, match=said):
                raise
    else:
        assert name in ("constant", "reach"), "it was taken"


def test_torchscript_and_half_precision_inside_are_refused() -> None:
    with pytest.warns(FutureWarning, match="torch.jit.script"):
        scripted = torch.jit.script(plain())
    for model, where in ((scripted, "the model"), (nn.Sequential(scripted).eval(), "layer '0'")):
        for entrance in ENTRANCES.values():
            with pytest.raises(UserError, match=f"{where} is compiled by torch.jit.* pass the Python module"):
                entrance(model, images())
    for entrance in ENTRANCES.values():
        with pytest.raises(UserError, match=r"rounds to torch.bfloat16 in its forward pass"):
            entrance(_Net(autocast_inside).float(), images().float())


def test_a_forward_pass_bound_to_the_original_is_refused_where_its_parameters_matter() -> None:
    model = closed_over()
    with pytest.raises(UserError, match=r"still computes with the original's '1\.weight'"):
        HessianOperator(model, images(), LABELS, dtype=torch.float64)
    ours = per_image_curvature(model, images(), LABELS).columns["trace"]
    expected = [hessian_in_image(model, i, y, 1e-7).trace() for i, y in zip(images(), LABELS, strict=True)]
    torch.testing.assert_close(ours, torch.stack(expected), rtol=1e-5, atol=1e-8)
    with pytest.raises(UserError, match="does more than its graph shows"):
        exact_trace(model, images())


# No false alarms


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])
@pytest.mark.parametrize("weights", [1e-8, 1.0, 1e4])
@pytest.mark.parametrize("pixels", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_no_scale_of_weights_images_or_logits_raises_an_alarm(
    dtype: torch.dtype, activation: type[nn.Module], weights: float, pixels: float, offset: float
) -> None:
    model, x = plain(activation), pixels * images()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= weights
        model[3].bias += offset
    require = {"eval": HessianOperator, "image": double_backward_curvature}
    require["eval"](model.to(dtype), x.to(dtype), LABELS, dtype=dtype)
    require["image"](model, x.to(dtype), LABELS, torch.arange(3), num_probes=1, lanczos_steps=1)


@pytest.mark.parametrize("picture", ["black", "white", "same", "one"])
@pytest.mark.parametrize("zero", [True, False])
def test_plain_images_and_zero_layers_raise_no_alarm(picture: str, zero: bool) -> None:
    torch.manual_seed(0)
    head = nn.Linear(16, 4)
    layers = (nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU())
    model = nn.Sequential(*layers, nn.Flatten(), head).double().eval()
    for layer in (model[0], model[3], head):
        nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    if zero:
        nn.init.zeros_(head.weight)
    one = torch.rand(1, 3, 4, 4).double()
    x = {"black": 0 * one, "white": 0 * one + 1, "same": one, "one": one}[picture].repeat(3, 1, 1, 1)
    x, labels = (x[:1], LABELS[:1]) if picture == "one" else (x, LABELS)
    HessianOperator(model, x, labels, dtype=torch.float64)
    double_backward_curvature(model, x, labels, torch.arange(len(x)))
    assert exact_trace(model, x).per_image.shape == (len(x),)


def test_a_black_image_does_not_hide_statistics_of_the_batch() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), plain()).double().eval()
    for entrance in ENTRANCES.values():
        with pytest.raises(UserError, match=r"layer '0' \(BatchNorm2d\)"):
            entrance(model, torch.zeros(3, 3, 2, 2).double())


def test_single_precision_inside_raises_no_alarm() -> None:
    model = _Net(lambda m, h: F.layer_norm(h.float(), (8,)).to(h.dtype))
    HessianOperator(model, images(), LABELS, dtype=torch.float64)
    double_backward_curvature(model, images(), LABELS, torch.arange(3))


def test_a_network_that_needs_single_precision_is_checked_in_it() -> None:
    def fixed(m: Any, h: Tensor) -> Tensor:
        return h @ torch.eye(8) if h.dtype == torch.float32 else h @ torch.eye(8, dtype=torch.int32)

    model = _Net(fixed).float()
    HessianOperator(model, images().float(), LABELS)
    double_backward_curvature(model, images().float(), LABELS, torch.arange(3))
    mixing = _Net(lambda m, h: fixed(m, h) - h.mean(0)).float()
    with pytest.raises(UserError, match="images influence each other"):
        HessianOperator(mixing, images().float(), LABELS)
