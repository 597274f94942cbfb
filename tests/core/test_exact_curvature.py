"""Per-image curvature against dense Hessians in float64: networks, symmetries, limits, refusals, ways to fall back."""

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dd_core.curvature import double_backward_curvature, per_image_curvature
from dd_core.curvature.input_space import per_image as per_image_module
from dd_core.curvature.input_space.linearized import LinearizedNetwork, NotLinearizableError
from dd_core.errors import UserError
from dd_core.study.curvature_names import CURVATURE_COLUMNS

from .dense import HESSIAN, assert_close, dense, mlp, network, pictures, relative_errors, torchvision_network
from .test_linearized import HIDDEN, SMOOTH, UNKNOWN, images, nothing_unknown

ARCHITECTURES = ("preact_resnet10", "preact_resnet18", "cnn5")
ERRORS = ("trace_standard_error", "frobenius_norm_standard_error", "largest_eigenvalue_residual")


def check(model: nn.Module, x: Tensor, labels: Tensor, **settings: Any) -> None:
    """The exact method was used and every value is that of the dense Hessian."""
    ours = per_image_curvature(model, x, labels, **settings)
    assert (ours.method, ours.note) == ("exact", None)
    assert list(ours.columns) == list(CURVATURE_COLUMNS)
    assert all(v.shape == (len(x),) and v.dtype == torch.float64 for v in ours.columns.values())
    assert_close(ours.columns, dense(model, x, labels), rel=1e-9, atol=1e-15)
    assert all((ours.columns[name] == 0).all() for name in ERRORS)


# At k = 3 the last layer of CNN5 and ResNets has 24 features, fewer than 99.
@pytest.mark.parametrize(("k", "channels", "classes"), [(1, 3, 2), (2, 1, 10), (3, 1, 100), (4, 3, 10)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_are_those_of_the_dense_hessian(architecture: str, k: int, channels: int, classes: int) -> None:
    check(network(architecture, k, channels, classes), pictures(channels), torch.tensor([0, 1, classes - 1]))


@pytest.mark.parametrize("classes", [2, 10, 100])
def test_values_of_a_multilayer_perceptron_are_those_of_the_dense_hessian(classes: int) -> None:
    check(mlp(classes), pictures(1, 6), torch.tensor([0, 1, classes - 1] * 2))


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("classes", [2, 10])
def test_values_of_a_users_network_are_those_of_the_dense_hessian(bottleneck: bool, classes: int) -> None:
    check(torchvision_network(bottleneck, classes), pictures(3), torch.tensor([0, 1, classes - 1]))


def test_values_of_a_single_linear_layer_are_those_of_the_dense_hessian() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 9, dtype=torch.float64)
    for model in (nn.Linear(9, 5), nn.Sequential(nn.Linear(9, 5)), nn.Sequential(nn.Linear(9, 20))):
        check(model.double().eval(), x, torch.tensor([0, 1, 2, 4]))


@pytest.mark.parametrize(("classes", "passes"), [(10, 9.0), (100, 24.0), (2, 1.0)])
def test_the_number_of_passes_is_the_rank_at_most(classes: int, passes: float) -> None:
    model = network("cnn5", 3, 1, classes)
    assert per_image_curvature(model, pictures(1), torch.tensor([0, 1, 0])).num_passes == passes


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_duplicated_and_constant_images_have_the_values_of_their_own(architecture: str) -> None:
    """Constant images tie in every max-pool and, at 0, in ReLUs of a network without shifts."""
    model, x = network(architecture, 2, 1, 10), pictures(1, 5)
    x[1], x[2], x[3] = x[0], 0, 0.7
    labels = torch.tensor([3, 3, 1, 2, 2])
    check(model, x, labels)
    columns = per_image_curvature(model, x, labels).columns
    for column in columns.values():
        torch.testing.assert_close(column[0], column[1], rtol=1e-12, atol=0)
    same = per_image_curvature(model, x[:1].expand(40, -1, -1, -1), labels[:1].expand(40)).columns
    for column in same.values():
        torch.testing.assert_close(column, column[:1].expand(40), rtol=1e-12, atol=0)


# Precision


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("k", "classes"), [(4, 10), (3, 100)])
def test_narrower_types_are_as_close_as_their_digits(architecture: str, k: int, classes: int) -> None:
    model, x = network(architecture, k, 3, classes), pictures(3, 64)
    labels = torch.arange(64) % classes
    exact = per_image_curvature(model, x, labels).columns
    single, narrow = (
        relative_errors(per_image_curvature(model.float(), x.float(), labels, precision=precision).columns, exact)
        for precision in (None, torch.bfloat16)
    )
    for name, errors in single.items():
        assert errors.median() < 1e-6, name
        assert errors.quantile(0.9) < 1e-5, name
    for name, errors in narrow.items():
        assert errors.median() < 1e-2, name
        assert errors.quantile(0.9) < 5e-2, name


def test_float64_passes_of_a_float32_network_change_what_its_rounding_allows() -> None:
    model, x, labels = network("preact_resnet10", 4, 1, 10).float(), pictures(1, 8).float(), torch.arange(8)
    single, double = (
        per_image_curvature(model, x, labels, precision=p).columns for p in (torch.float32, torch.float64)
    )
    assert_close(single, double, rel=1e-5)


# Saturated softmax


@pytest.mark.parametrize("method", ["exact", "top_directions"])
@pytest.mark.parametrize("scale", [1e2, 1e4, 1e8])
@pytest.mark.parametrize(("architecture", "k", "classes"), [("preact_resnet10", 2, 10), ("cnn5", 16, 100)])
def test_a_saturated_network_is_flat_and_its_gradients_are_right(
    architecture: str, k: int, classes: int, scale: float, method: Any
) -> None:
    model, x = network(architecture, k, 1, classes), pictures(1, 6)
    for parameter in model.linear.parameters():  # type: ignore[union-attr]
        parameter.data *= scale
    logits = model(x)
    right, wrong = logits.argmax(1), logits.argmin(1)
    assert (logits.softmax(1).max(1).values == 1).all()
    for labels in (right, wrong):
        exact = per_image_curvature(model, x, labels, method=method).columns
        single = per_image_curvature(copy.deepcopy(model).float(), x.float(), labels, method=method).columns
        for columns in (exact, single):
            assert all(torch.isfinite(column).all() for column in columns.values())
            for name in HESSIAN:
                assert (columns[name] >= 0).all(), name
                assert (columns[name] < 1e-12).all(), name
        if labels is right:
            assert (exact["loss"] < 1e-15).all()
            assert (exact["gradient_norm"] < 1e-12).all()
        else:
            # The given class has no probability: the gradient is that of the logit difference.
            source = x.clone().requires_grad_(True)
            other = model(source)
            gap = (other.gather(1, right[:, None]) - other.gather(1, wrong[:, None])).sum()
            expected = torch.autograd.grad(gap, source)[0].flatten(1).norm(dim=1)
            torch.testing.assert_close(exact["gradient_norm"], expected, rtol=1e-9, atol=0)
            torch.testing.assert_close(single["gradient_norm"], expected, rtol=1e-5, atol=0)
            torch.testing.assert_close(single["loss"], exact["loss"], rtol=1e-5, atol=0)


def test_mislabelled_saturated_images_keep_their_digits_in_single_precision() -> None:
    model, x = network("preact_resnet10", 4, 1, 10), pictures(1, 40)
    for parameter in model.linear.parameters():  # type: ignore[union-attr]
        parameter.data *= 20
    labels = model(x).argmin(1)
    assert model(x).softmax(1).max(1).values.median() > 1 - 1e-6
    exact = per_image_curvature(model, x, labels).columns
    errors = relative_errors(per_image_curvature(model.float(), x.float(), labels).columns, exact)
    for name, values in errors.items():
        assert values.max() < 1e-4, name


@pytest.mark.parametrize("gap", [30.0, 300.0, 700.0])
def test_tiny_curvature_keeps_its_relative_accuracy(gap: float) -> None:
    """Two classes: H = p (1 - p) (J0 - J1)(J0 - J1)^T, with 1 - p = exp(-gap) far below the machine's epsilon."""
    model, x = network("preact_resnet10", 2, 1, 2), pictures(1, 1)
    model.linear.bias.data[0] += gap - (model(x)[0, 0] - model(x)[0, 1]).item()  # type: ignore[operator,union-attr]
    source = x.clone().requires_grad_(True)
    logits = model(source)
    (slope,) = torch.autograd.grad(logits[0, 0] - logits[0, 1], source)
    q = np.exp(-float((logits[0, 0] - logits[0, 1]).detach()))
    columns = per_image_curvature(model, x, torch.tensor([0])).columns
    assert columns["trace"].item() == pytest.approx(q / (1 + q) ** 2 * slope.norm().item() ** 2, rel=1e-9, abs=0)
    assert columns["largest_eigenvalue"].item() == pytest.approx(columns["trace"].item(), rel=1e-9, abs=0)
    assert columns["gradient_curvature"].item() == pytest.approx(columns["trace"].item(), rel=1e-9, abs=0)
    assert columns["gradient_norm"].item() == pytest.approx(q / (1 + q) * slope.norm().item(), rel=1e-9, abs=0)
    assert columns["loss"].item() == pytest.approx(np.log1p(q), rel=1e-9, abs=0)


def test_a_constant_network_has_no_curvature() -> None:
    model, x = network("cnn5", 2, 1, 4), pictures(1)
    model.linear.weight.data.zero_()  # type: ignore[operator,union-attr]
    columns = per_image_curvature(model, x, torch.arange(3)).columns
    for name in (*HESSIAN, "gradient_norm"):
        assert (columns[name] == 0).all()


# Batches and order


@settings(max_examples=12)
@given(batch_size=st.integers(1, 40), classes=st.sampled_from([10, 100]), architecture=st.sampled_from(ARCHITECTURES))
def test_the_batch_size_does_not_matter(batch_size: int, classes: int, architecture: str) -> None:
    """Float32, a partial last batch or not; confident networks, whose probabilities magnify any rounding."""
    model, x = network(architecture, 4, 1, classes).float(), pictures(1, 37).float()
    model.linear.weight.data *= 10  # type: ignore[operator,union-attr]
    labels = torch.arange(37) % classes
    whole = per_image_curvature(model, x, labels).columns
    parts = per_image_curvature(model, x, labels, batch_size=batch_size).columns
    assert_close(parts, whole, rel=1e-6, atol=0)


@pytest.mark.parametrize("method", ["exact", "top_directions"])
def test_shards_of_any_size_give_the_rows_of_the_whole(method: Any) -> None:
    model, x = network("cnn5", 8, 1, 100).float(), pictures(1, 41).float()
    ids, labels = 1000 + 3 * torch.arange(41), torch.arange(41) % 100
    whole = per_image_curvature(model, x, labels, image_ids=ids, method=method).columns
    for cuts in ((1, 20), (17, 40), (2, 3)):
        parts = [
            per_image_curvature(model, x[a:b], labels[a:b], image_ids=ids[a:b], method=method).columns
            for a, b in zip((0, *cuts), (*cuts, 41), strict=True)
        ]
        assert_close({n: torch.cat([part[n] for part in parts]) for n in CURVATURE_COLUMNS}, whole, rel=1e-6, atol=0)


@settings(max_examples=10)
@given(order=st.permutations(range(5)), architecture=st.sampled_from(ARCHITECTURES))
def test_permuted_images_give_permuted_rows(order: list[int], architecture: str) -> None:
    model, x, labels = network(architecture, 1, 1, 4), pictures(1, 5), torch.arange(5) % 4
    straight = per_image_curvature(model, x, labels).columns
    permuted = per_image_curvature(model, x[order], labels[order]).columns
    assert_close(permuted, {name: column[order] for name, column in straight.items()}, rel=1e-12, atol=0)


def test_memory_layouts_do_not_matter() -> None:
    model, x, labels = network("preact_resnet10", 2, 3, 10), pictures(3, 5), torch.arange(5)
    plain = per_image_curvature(model, x, labels).columns
    model = model.to(memory_format=torch.channels_last)
    for layout in (torch.contiguous_format, torch.channels_last):
        moved = x.contiguous(memory_format=layout)
        assert_close(per_image_curvature(model, moved, labels).columns, plain, rel=1e-10)
    every_other = torch.randn(5, 6, 8, 16, dtype=torch.float64)[:, ::2, :, ::2]
    every_other.copy_(x)
    assert_close(per_image_curvature(model, every_other, labels).columns, plain, rel=1e-10)


def test_out_of_memory_halves_the_batch_and_goes_on(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    model, x, labels = network("preact_resnet10", 2, 1, 10), pictures(1, 50), torch.arange(50) % 10
    whole = per_image_curvature(model, x, labels).columns
    usual, sizes = LinearizedNetwork.forward, []

    def limited(self: LinearizedNetwork, batch: Tensor, keep_inputs: bool = False) -> Any:
        if len(batch) > 11:
            raise torch.OutOfMemoryError("CUDA out of memory")
        sizes.append(len(batch))
        return usual(self, batch, keep_inputs)

    monkeypatch.setattr(LinearizedNetwork, "forward", limited)
    with caplog.at_level(logging.WARNING):
        assert_close(per_image_curvature(model, x, labels).columns, whole, rel=1e-12, atol=0)
    assert "out of memory" in caplog.text
    assert set(sizes[2:]) == {8}  # 32 halved twice; the last one is filled up
    monkeypatch.setattr(LinearizedNetwork, "forward", usual)

    def never(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(per_image_module, "exact_curvature", never)
    with pytest.raises(UserError, match="out of memory even with 1 example"):
        per_image_curvature(model, x, labels)


# Symmetries


@pytest.mark.parametrize("method", ["exact", "top_directions"])
@pytest.mark.parametrize("constant", [-3.0, 100.0])
def test_a_constant_added_to_all_logits_changes_nothing(constant: float, method: Any) -> None:
    model, x, labels = network("cnn5", 4, 1, 30), pictures(1), torch.arange(3)
    before = per_image_curvature(model, x, labels, method=method).columns
    model.linear.bias.data += constant  # type: ignore[operator,union-attr]
    assert_close(per_image_curvature(model, x, labels, method=method).columns, before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("a", [0.1, 4.0])
def test_curvature_has_the_unit_of_one_over_input_squared(architecture: str, a: float) -> None:
    model, x, labels = network(architecture, 2, 1, 10), pictures(1), torch.arange(3)
    before = per_image_curvature(model, x, labels).columns
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.weight.data /= a
    after = per_image_curvature(model, x * a, labels).columns
    assert_close(after, before, gradient_norm=1 / a, **dict.fromkeys(HESSIAN, a**-2))


def test_the_hessian_does_not_depend_on_the_label_but_the_gradient_does() -> None:
    model, x = network("preact_resnet10", 2, 1, 10), pictures(1)
    one, two = (per_image_curvature(model, x, torch.full((3,), label)).columns for label in (1, 2))
    for name in ("trace", "frobenius_norm", "largest_eigenvalue"):
        assert torch.equal(one[name], two[name])
    assert (one["gradient_norm"] != two["gradient_norm"]).all()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_keep_the_order_that_every_positive_matrix_has(architecture: str) -> None:
    columns = per_image_curvature(network(architecture, 4, 1, 10), pictures(1, 30), torch.arange(30) % 10).columns
    slack = 1 + 1e-12
    assert (columns["largest_eigenvalue"] <= columns["frobenius_norm"] * slack).all()
    assert (columns["frobenius_norm"] <= columns["trace"] * slack).all()
    assert (columns["trace"] <= 3 * columns["frobenius_norm"] * slack).all()  # rank 9
    assert (columns["gradient_curvature"] <= columns["largest_eigenvalue"] * slack).all()


# Ways to fall back


@pytest.mark.parametrize("name", [*UNKNOWN, *HIDDEN])
def test_what_the_fast_pass_does_not_know_has_the_same_values_by_autograd(name: str) -> None:
    model, labels = nothing_unknown(name), torch.tensor([0, 1, 4])
    if name == "over the batch":
        with pytest.raises(UserError, match="so images influence each other"):
            per_image_curvature(model, images(), labels)
        return
    ours = per_image_curvature(model, images(), labels)
    if ours.method == "exact":
        assert_close(ours.columns, dense(model, images(), labels), rel=1e-9, atol=1e-15)
    else:  # not on the list of what is piecewise linear: unknown, and said
        assert ours.note is not None
        assert ours.note.startswith("double_backward instead of exact: ")


def test_most_of_what_the_fast_pass_does_not_know_is_still_exact() -> None:
    methods = {
        name: per_image_curvature(nothing_unknown(name), images(), torch.arange(3)).method
        for name in (*UNKNOWN, *HIDDEN)
        if name != "over the batch"
    }
    assert {name for name, method in methods.items() if method != "exact"} <= {"attribute"}


@pytest.mark.parametrize("name", SMOOTH)
def test_a_smooth_network_gets_double_backward_and_is_told(name: str, caplog: Any) -> None:
    model, labels, ids = nothing_unknown(name), torch.tensor([0, 1, 4]), torch.tensor([5, 6, 9])
    with caplog.at_level(logging.WARNING):
        ours = per_image_curvature(model, images(), labels, image_ids=ids, num_probes=4, seed=3)
    assert (ours.method, ours.num_passes) == ("double_backward", None)
    assert ours.note is not None
    assert ours.note.startswith("double_backward instead of exact: ")
    assert ours.note in caplog.text
    theirs = double_backward_curvature(model, images(), labels, ids, num_probes=4, seed=3)
    assert all(torch.equal(ours.columns[column], theirs[column]) for column in CURVATURE_COLUMNS)


def test_double_backward_on_request_has_the_exact_values_within_its_errors() -> None:
    model, x, labels = network("preact_resnet10", 2, 1, 10), pictures(1, 6), torch.arange(6)
    ours = per_image_curvature(model, x, labels, method="double_backward")
    assert (ours.method, ours.note) == ("double_backward", None)
    # Ten Lanczos steps hold all nine directions of such a Hessian.
    assert_close(ours.columns, per_image_curvature(model, x, labels).columns, rel=1e-6)


def test_a_network_that_cannot_be_traced_is_exact_by_autograd() -> None:
    class Branches(nn.Module):
        def __init__(self, model: nn.Module):
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            if x.abs().max() > 1e9:
                raise AssertionError
            result: Tensor = self.model(x)
            return result

    model, x, labels = network("cnn5", 2, 1, 10), pictures(1), torch.arange(3)
    branching = Branches(model).eval()
    with pytest.raises(NotLinearizableError, match="cannot trace"):
        LinearizedNetwork(branching)
    plain = per_image_curvature(model, x, labels)
    ours = per_image_curvature(branching, x, labels)
    assert ours.method == "exact"
    assert_close(ours.columns, plain.columns, rel=1e-12)


def test_a_forward_hook_is_part_of_the_network() -> None:
    model, x, labels = network("preact_resnet10", 2, 1, 10), pictures(1), torch.arange(3)
    model.linear.register_forward_hook(lambda _module, _inputs, output: 2 * output)  # type: ignore[union-attr]
    check(model, x, labels)


# Refusals, and what is left as it was


def test_training_mode_is_refused_and_names_the_layer() -> None:
    model = network("cnn5", 1, 1, 4)
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        per_image_curvature(model.train(), pictures(1), torch.arange(3))
    model.eval().layers[1].train()  # type: ignore[index,union-attr]
    with pytest.raises(UserError, match=r"'layers\.1' \(BatchNorm\)"):
        per_image_curvature(model, pictures(1), torch.arange(3))


@pytest.mark.parametrize("method", ["exact", "top_directions", "double_backward"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_and_the_model_is_left_as_it_was(value: float, method: Any) -> None:
    model = network("cnn5", 1, 1, 4)
    model.linear.weight.data[0, 0] = value  # type: ignore[index,union-attr]
    model.linear.bias.requires_grad_(False)  # type: ignore[operator,union-attr]
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(UserError, match="not finite"):
        per_image_curvature(model, pictures(1), torch.arange(3), method=method)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all("forward" not in vars(module) for module in model.modules())


def test_a_network_that_breaks_on_a_later_image_is_refused() -> None:
    x = pictures(1, 40).float()
    x[33, 0, 0, 0] = torch.inf
    with pytest.raises(UserError, match="not finite"):
        per_image_curvature(network("cnn5", 2, 1, 4).float(), x, torch.zeros(40, dtype=torch.int64))


LABELS, IMAGES = torch.arange(3), pictures(1)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "class beyond the last": ({"labels": torch.tensor([0, 1, 4])}, "labels from 0 to 4 do not fit the model's 4"),
    "negative class": ({"labels": torch.tensor([0, -1, 2])}, "labels from -1 to 2 do not fit"),
    "labels of a stack": ({"labels": torch.zeros(3, 2, dtype=torch.int64)}, r"labels must be int64 of shape \(3,\)"),
    "float labels": ({"labels": LABELS.double()}, "labels must be int64"),
    "too few labels": ({"labels": LABELS[:2]}, r"labels must be int64 of shape \(3,\)"),
    "too few ids": ({"image_ids": LABELS[:2]}, r"image ids must be int64 of shape \(3,\)"),
    "float32 images": ({"images": IMAGES.float()}, "both in float32 or both in float64"),
    "integer images": ({"images": IMAGES.to(torch.uint8)}, "images in float32 or float64"),
    "more channels": ({"images": pictures(3)}, r"images of shape \(3, 8, 8\) do not fit the model"),
    "no channels": ({"images": IMAGES[:, 0]}, r"images of shape \(8, 8\) do not fit the model"),
    "flat images": ({"images": IMAGES.flatten(1)}, r"images of shape \(64,\) do not fit the model"),
    "tiny images": ({"images": IMAGES[..., :2, :2]}, r"images of shape \(1, 2, 2\) do not fit the model"),
    "no images": ({"images": IMAGES[:0], "labels": LABELS[:0]}, "there are no images"),
    "unknown method": ({"method": "hutchinson"}, "there is no estimator 'hutchinson'; there are exact"),
    "no error at all": ({"method": "top_directions", "relative_error": 0.0}, "relative_error must lie between 0 and 1"),
    "no probes": ({"method": "top_directions", "num_probes": 0}, "num_probes must be at least 1"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_does_not_fit_is_refused_in_one_sentence(what: str) -> None:
    change, sentence = REFUSED[what]
    given = {"images": IMAGES, "labels": LABELS, **change}
    with pytest.raises(UserError, match=sentence) as caught:
        per_image_curvature(network("cnn5", 1, 1, 4), **given)
    assert "\n" not in str(caught.value)


def test_a_network_of_one_output_and_one_that_gives_images_are_refused() -> None:
    with pytest.raises(UserError, match="at least two classes"):
        per_image_curvature(network("cnn5", 1, 1, 1), IMAGES, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UserError, match="logits of shape"):
        per_image_curvature(nn.Conv2d(1, 4, 3).double().eval(), IMAGES, LABELS)


@pytest.mark.parametrize("method", ["exact", "top_directions", "double_backward"])
def test_the_model_and_images_are_left_as_they_were(method: Any) -> None:
    model, x = network("preact_resnet10", 1, 1, 4), pictures(1)
    model.linear.bias.requires_grad_(False)  # type: ignore[operator,union-attr]
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pointers = [p.data_ptr() for p in model.parameters()]
    modules, before = list(model.modules()), x.clone()
    columns = per_image_curvature(model, x, torch.arange(3), method=method).columns
    assert list(model.modules()) == modules
    assert all("forward" not in vars(module) for module in modules)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert [p.data_ptr() for p in model.parameters()] == pointers
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert not any(column.requires_grad for column in columns.values())


def test_it_works_where_gradients_are_switched_off() -> None:
    model, x, labels = network("cnn5", 2, 1, 4), pictures(1), torch.arange(3)
    before = per_image_curvature(model, x, labels).columns
    with torch.no_grad():
        assert_close(per_image_curvature(model, x, labels).columns, before, rel=1e-14)


def test_the_docstring_shows_what_happens() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).eval()
    curvature = per_image_curvature(model, torch.ones(5, 3, 2, 2), torch.zeros(5, dtype=torch.int64))
    assert (curvature.method, tuple(curvature.columns["trace"].shape)) == ("exact", (5,))
    assert F.relu(curvature.columns["trace"]).min() > 0
