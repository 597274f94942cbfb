"""The Hessian in the parameters against dense float64 Hessians by double backward, in every quantity."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dd_core.curvature.parameter_space import (
    HessianOperator,
    analyse_hessian,
    exact_trace,
)
from dd_core.errors import UserError
from dd_core.models.build import build
from dd_core.study.hessian import HessianSettings
from dd_core.tasks.losses import CrossEntropy

from .dense_hessians import (
    CASES,
    NUM_IMAGES,
    dense,
    gradient_and_hessian,
    labels_for,
    network,
    operator_of,
    pictures,
    seeded,
)

# The operator


@pytest.mark.parametrize(("batch_size", "block_size"), [(1, 1), (2, 3), (3, 8), (250, 2)])
@pytest.mark.parametrize(("architecture", "classes"), CASES)
def test_products_are_those_of_the_dense_hessian(
    architecture: str, classes: int, batch_size: int, block_size: int
) -> None:
    gradient, hessian = dense(architecture, classes)
    operator = operator_of(architecture, classes, batch_size=batch_size, block_size=block_size)
    vectors = torch.randn(5, len(hessian), dtype=torch.float64, generator=seeded())
    for _ in range(2):  # again, from what was kept of the first pass
        torch.testing.assert_close(operator.matmat(vectors), vectors @ hessian, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(operator.matvec(vectors[0]), hessian @ vectors[0], rtol=1e-10, atol=1e-12)
    loss, own_gradient = operator.loss_and_gradient()
    expected = cross_entropy(network(architecture, classes)(pictures()), labels_for(classes)).item()
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(own_gradient, gradient, rtol=1e-10, atol=1e-13)


def test_single_precision_is_close_to_double() -> None:
    _, hessian = dense("preact_resnet10", 10)
    vectors = torch.randn(2, len(hessian), generator=seeded())
    products = operator_of("preact_resnet10", 10, dtype=torch.float32).matmat(vectors)
    assert products.dtype == torch.float32
    expected = vectors.double() @ hessian
    assert (products.double() - expected).norm() < 1e-6 * expected.norm()


def test_smooth_networks_have_products_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.GELU(), nn.Linear(4, 3)).double().eval()
    _, hessian = gradient_and_hessian(model, pictures(), labels_for(3))
    vector = torch.randn(len(hessian), dtype=torch.float64, generator=seeded())
    operator = HessianOperator(model, pictures(), labels_for(3), dtype=torch.float64, batch_size=2)
    torch.testing.assert_close(operator.matvec(vector), hessian @ vector, rtol=1e-10, atol=1e-12)


def test_parameters_that_the_loss_does_not_see_have_zero_rows() -> None:
    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(64, 3), nn.Linear(2, 2)

        def forward(self, images: Tensor) -> Tensor:
            return self.used(images.flatten(1))

    operator = HessianOperator(Extra().double().eval(), pictures(), labels_for(3), dtype=torch.float64)
    product = operator.matvec(torch.randn(operator.size, dtype=torch.float64, generator=seeded()))
    assert product[-6:].tolist() == [0] * 6
    assert product[:-6].abs().max() > 1e-3
    alone = HessianOperator(Extra().eval(), pictures(), labels_for(3), layers=("unused",))
    assert alone.matvec(torch.ones(6)).tolist() == [0] * 6


def test_the_model_and_images_are_left_as_they_were() -> None:
    model, images = network("preact_resnet10", 10), pictures()
    model.linear.bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hooks = [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()]
    before = images.clone()
    analyse_hessian(model, images, labels_for(10), HessianSettings(batch_size=2, lanczos_steps=12, density_steps=4))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert [len(m._forward_hooks) + len(m._backward_hooks) for m in model.modules()] == hooks
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert torch.get_default_dtype() == torch.float32


def test_out_of_memory_halves_the_batch_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, hessian = dense("mlp", 10)
    operator = operator_of("mlp", 10)
    sizes: list[int] = []

    def scarce(_: object, logits: Tensor, labels: Tensor) -> Tensor:
        sizes.append(len(labels))
        if len(labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return cross_entropy(logits, labels, reduction="sum")

    monkeypatch.setattr(CrossEntropy, "total", scarce)
    vectors = torch.randn(2, len(hessian), dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(operator.matmat(vectors), vectors @ hessian, rtol=1e-10, atol=1e-12)
    assert sizes == [5, 2, 2, 1]
    operator.matmat(vectors)
    assert sizes[4:] == [2, 2, 1]


def test_memory_that_does_not_hold_one_image_is_a_users_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(CrossEntropy, "total", none)
    with pytest.raises(UserError, match="memory"):
        operator_of("mlp", 10).loss_and_gradient()


# Layers

BN1, BN2 = ([(name, own) for own in ("weight", "bias")] for name in ("bn1", "bn2"))


@pytest.mark.parametrize(
    ("patterns", "names"),
    [
        (("linear",), ["linear.weight", "linear.bias"]),
        (("linear", "conv1"), ["conv1.weight", "linear.weight", "linear.bias"]),
        (("blocks.1.bn2",), ["blocks.1.bn2.weight", "blocks.1.bn2.bias"]),
        ((r"blocks\.\d\.conv2",), [f"blocks.{i}.conv2.weight" for i in range(4)]),
        (("blocks.0",), [f"blocks.0.{n}.{w}" for n, w in (*BN1, ("conv1", "weight"), *BN2, ("conv2", "weight"))]),
    ],
)  # fmt: skip
def test_the_hessian_of_chosen_layers_is_a_block_of_the_whole(patterns: tuple[str, ...], names: list[str]) -> None:
    _, hessian = dense("preact_resnet10", 10)
    model = network("preact_resnet10", 10)
    chosen = torch.cat([torch.full((p.numel(),), name in names) for name, p in model.named_parameters()])
    block = hessian[chosen][:, chosen]
    operator = operator_of("preact_resnet10", 10, layers=patterns)
    assert list(operator.layers.parameters) == names
    vector = torch.randn(operator.size, dtype=torch.float64, generator=seeded())
    torch.testing.assert_close(operator.matvec(vector), block @ vector, rtol=1e-10, atol=1e-12)
    trace = exact_trace(model, pictures(), layers=patterns, dtype=torch.float64)
    assert trace.per_image.mean() == pytest.approx(block.trace().item(), rel=1e-10)


def test_a_pattern_that_matches_nothing_is_refused_with_the_names_of_the_layers() -> None:
    with pytest.raises(UserError, match=r"'blocks.9' matches no layer; the layers are conv1, blocks.0.bn1"):
        operator_of("preact_resnet10", 10, layers=("linear", "blocks.9"))
    with pytest.raises(UserError, match="matches no layer"):
        operator_of("preact_resnet10", 10, layers=("onv1",))  # a part of a name is not the name
    with pytest.raises(UserError, match="not a regular expression"):
        operator_of("preact_resnet10", 10, layers=("(",))


def test_a_model_without_parameters_is_refused() -> None:
    with pytest.raises(UserError, match="no parameters"):
        HessianOperator(nn.Flatten().eval(), pictures(), labels_for(10))


# The whole analysis


@pytest.mark.parametrize(("architecture", "classes"), [("mlp", 100), ("cnn5", 10), ("preact_resnet10", 10)])
def test_every_number_of_the_analysis_is_that_of_the_dense_hessian(architecture: str, classes: int) -> None:
    gradient, hessian = dense(architecture, classes)
    options = HessianSettings(
        num_eigenvalues=3, lanczos_steps=200, lanczos_tolerance=1e-9, batch_size=2, precision="float64", block_size=3
    )
    model = network(architecture, classes)
    result = analyse_hessian(model, pictures(), labels_for(classes), options)
    eigenvalues, vectors = torch.linalg.eigh(hessian)
    assert (result.num_images, result.num_parameters) == (NUM_IMAGES, len(hessian))
    assert result.layers[-1] == ("linear" if architecture != "mlp" else "6")
    assert result.eigenvalues is not None
    np.testing.assert_allclose(result.eigenvalues, eigenvalues[-3:].flip(0).numpy(), rtol=1e-8)
    assert result.smallest_eigenvalue == pytest.approx(eigenvalues[0].item(), rel=1e-8, abs=1e-12)
    assert result.trace_exact == pytest.approx(hessian.trace().item(), rel=1e-9)
    assert result.trace_by_layer is not None
    assert sum(result.trace_by_layer.values()) == pytest.approx(hessian.trace().item(), rel=1e-9)
    for estimate, error in (
        (result.trace_hutchinson, result.trace_hutchinson_error),
        (result.trace_hutch_plus_plus, result.trace_hutch_plus_plus_error),
    ):
        assert estimate is not None
        assert error is not None
        assert abs(estimate - hessian.trace().item()) < 5 * error
    assert result.gradient_norm == pytest.approx(gradient.norm().item(), rel=1e-9)
    sharpness = (gradient @ hessian @ gradient / gradient.square().sum()).item()
    assert result.gradient_sharpness == pytest.approx(sharpness, rel=1e-9)
    overlap = ((vectors[:, -3:].T @ gradient).square().sum() / gradient.square().sum()).item()
    assert result.gradient_overlap == pytest.approx(overlap, rel=1e-5, abs=1e-12)
    own = [gradient_of(model, pictures()[i : i + 1], labels_for(classes)[i : i + 1]) for i in range(NUM_IMAGES)]
    norms = np.array([float(g.norm()) for g in own])
    spread = np.mean([float((g - gradient).square().sum()) for g in own])
    assert result.gradient_variance == pytest.approx(spread, rel=1e-9)
    found = (result.image_gradient_norm_mean, result.image_gradient_norm_median, result.image_gradient_norm_max)
    assert found == pytest.approx((norms.mean(), np.median(norms), norms.max()), rel=1e-9)


def gradient_of(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    parts = torch.autograd.grad(cross_entropy(model(images), labels), list(model.parameters()))
    return torch.cat([part.reshape(-1) for part in parts])


def test_the_batch_size_and_block_size_do_not_matter() -> None:
    base = HessianSettings(precision="float64", num_eigenvalues=3, density_steps=6, density_probes=3)
    results = [
        analyse_hessian(network("cnn5", 10), pictures(), labels_for(10), base.model_copy(update=sizes))
        for sizes in ({}, {"batch_size": 1, "block_size": 8}, {"batch_size": 3, "block_size": 8})
    ]
    for name in vars(results[0]):
        for other in results[1:]:
            first, second = getattr(results[0], name), getattr(other, name)
            if isinstance(first, float | np.ndarray):
                np.testing.assert_allclose(second, first, rtol=1e-7, atol=1e-9, err_msg=name)


def test_only_what_was_asked_for_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    products: list[int] = []
    matmat = HessianOperator.matmat
    monkeypatch.setattr(HessianOperator, "matmat", lambda o, v: (products.append(len(v)), matmat(o, v))[1])
    model, images, labels = network("mlp", 10), pictures(), labels_for(10)
    result = analyse_hessian(model, images, labels, HessianSettings(quantities=("exact_trace", "gradient_variance")))
    assert products == []
    filled = {name for name, value in vars(result).items() if value is not None}
    basics = {"num_images", "num_parameters", "layers", "loss", "gradient_norm"}
    variance = {
        "gradient_variance",
        "image_gradient_norm_mean",
        "image_gradient_norm_median",
        "image_gradient_norm_max",
    }
    assert filled == basics | variance | {"trace_exact", "trace_by_layer"}
    result = analyse_hessian(model, images, labels, HessianSettings(quantities=("hutchinson",), hutchinson_probes=7))
    assert sum(products) == 7
    assert result.trace_exact is None


def test_the_seed_decides_the_random_vectors() -> None:
    def estimate(seed: int) -> float | None:
        options = HessianSettings(quantities=("hutchinson",), precision="float64")
        return analyse_hessian(network("mlp", 10), pictures(), labels_for(10), options, seed=seed).trace_hutchinson

    assert estimate(1) == estimate(1) != estimate(2)


# Refusals

Change = Callable[[nn.Module], object]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.train(), r"model is in training mode.*model\.eval\(\)"),
        (lambda m: m.blocks[1].bn2.train(), r"layer 'blocks.1.bn2' \(BatchNorm\) is in training mode"),
        (lambda m: m.conv1.weight.data.fill_(torch.nan), "conv1.weight has NaN"),
        (lambda m: m.blocks[0].bn1.running_var.fill_(torch.inf), "blocks.0.bn1.running_var has NaN or infinite"),
    ],
)
def test_a_model_that_cannot_be_analysed_is_refused(change: Change, reason: str) -> None:
    model = network("preact_resnet10", 10)
    change(model)
    with pytest.raises(UserError, match=reason):
        analyse_hessian(model, pictures(), labels_for(10), HessianSettings())


@pytest.mark.parametrize(
    ("images", "labels", "reason"),
    [
        (pictures(0), torch.empty(0, dtype=torch.int64), "no images"),
        (pictures(2), torch.tensor([0, 10]), "labels reach from 0 to 10, but the network has 10 classes"),
        (pictures(2), torch.tensor([-1, 3]), "labels reach from -1"),
        (pictures(2), torch.tensor([0, 1, 2]), r"shape \(3,\); 2 images need int64 labels"),
        (pictures(2), torch.tensor([0.0, 1.0]), "labels are torch.float32"),
        (pictures(2) * torch.nan, torch.tensor([0, 1]), "images have NaN"),
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), r"images of shape \(3, 8, 8\) do not fit the model"),
    ],
)
def test_data_that_do_not_fit_are_refused(images: Tensor, labels: Tensor, reason: str) -> None:
    with pytest.raises(UserError, match=reason) as caught:
        analyse_hessian(network("preact_resnet10", 10), images, labels, HessianSettings())
    assert "\n" not in str(caught.value)


def test_a_stack_of_networks_is_refused() -> None:
    model = build("cnn5", 1, 1, 10, trials=2).eval()
    with pytest.raises(UserError, match="must give logits of shape"):
        analyse_hessian(model, torch.zeros(2, 2, 8, 8), torch.tensor([0, 1]), HessianSettings())
