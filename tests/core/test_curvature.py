"""Per-image curvature against dense Hessians in float64, its symmetries, its limits, and the files it is kept in."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.functional import cross_entropy

from dd_core import provenance
from dd_core.curvature import CurvatureColumns, curve_checkpoint, per_image_curvature, softmax_hessian_factor
from dd_core.curvature import checkpoint as checkpoint_module
from dd_core.data.datasets import load
from dd_core.data.trials import trial_data
from dd_core.errors import StaleError, UserError
from dd_core.models import build, load_state, stack_states
from dd_core.provenance import checkpoint_manifest, curvature_is_current, curvature_manifest, missing_curvature
from dd_core.store import Store
from dd_core.studies import Arm, Checkpoint, Study
from dd_core.tables import read_parquet
from dd_core.training import train_arm
from dd_core.training.checkpoints import load_checkpoint

ARCHITECTURES = ("preact_resnet10", "preact_resnet18", "cnn5")
NAMES = tuple(CurvatureColumns.__dataclass_fields__)


def network(architecture: str, k: int, channels: int, classes: int, seed: int = 0) -> nn.Module:
    """Float64, in eval mode, with BatchNorm statistics and affine weights as after some training."""
    torch.manual_seed(seed)
    model = build(architecture, k, channels, classes).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.3)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2)
    return model


def pictures(channels: int, number: int = 3, side: int = 8, seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(number, channels, side, side, dtype=torch.float64)


def dense(model: nn.Module, image: Tensor, label: Tensor) -> dict[str, float]:
    """All values of one image from the loss and its Hessian by double backward, nothing about softmax assumed."""

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(model(x.view(1, *image.shape)), label.view(1))

    x = image.reshape(-1).clone().requires_grad_(True)
    value = loss(x)
    (gradient,) = torch.autograd.grad(value, x)
    matrix = hessian(loss, image.reshape(-1), vectorize=True)
    assert isinstance(matrix, Tensor)
    return {
        "loss": value.item(),
        "probability": torch.softmax(model(image[None])[0], 0)[label].item(),
        "gradient_norm": gradient.norm().item(),
        "trace": matrix.trace().item(),
        "frobenius_norm": matrix.norm().item(),
        "largest_eigenvalue": torch.linalg.eigvalsh(matrix)[-1].item(),
    }


@pytest.mark.parametrize(("k", "channels", "classes"), [(1, 3, 2), (2, 1, 10), (3, 1, 100)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_values_are_those_of_the_dense_hessian(architecture: str, k: int, channels: int, classes: int) -> None:
    model, images = network(architecture, k, channels, classes), pictures(channels)
    labels = torch.tensor([0, 1, classes - 1])
    ours = per_image_curvature(model, images, labels)
    for i in range(3):
        for name, expected in dense(model, images[i], labels[i]).items():
            value = getattr(ours, name)
            assert value.shape == (3, 1)
            assert value.dtype == torch.float64
            assert value[i, 0].item() == pytest.approx(expected, rel=1e-9, abs=1e-12), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 3])
def test_stacked_networks_get_the_values_of_each_alone(architecture: str, channels: int) -> None:
    separate = [network(architecture, 2, channels, 10, seed) for seed in range(3)]
    model = build(architecture, 2, channels, 10, trials=3).double().eval()
    load_state(model, stack_states([m.state_dict() for m in separate]))
    model = model.to(memory_format=torch.channels_last)
    images = pictures(3 * channels, 4).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(12).view(4, 3) % 10
    together = per_image_curvature(model, images, labels)
    for t, alone in enumerate(separate):
        own = per_image_curvature(alone, images[:, t * channels : (t + 1) * channels], labels[:, t])
        for name in NAMES:
            torch.testing.assert_close(getattr(together, name)[:, t], getattr(own, name)[:, 0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_size_does_not_matter(batch_size: int) -> None:
    model, images, labels = network("preact_resnet10", 2, 1, 10), pictures(1, 5), torch.arange(5)
    assert_same(
        per_image_curvature(model, images, labels, batch_size=batch_size), per_image_curvature(model, images, labels)
    )


def assert_same(ours: CurvatureColumns, theirs: CurvatureColumns, rel: float = 1e-10, **factors: float) -> None:
    for name in NAMES:
        expected = getattr(theirs, name) * factors.get(name, 1)
        torch.testing.assert_close(getattr(ours, name), expected, rtol=rel, atol=1e-13, msg=lambda m, n=name: n + m)


def test_single_precision_is_close_to_double() -> None:
    model, images, labels = network("preact_resnet18", 2, 3, 10), pictures(3), torch.arange(3)
    exact = per_image_curvature(model, images, labels)
    assert_same(per_image_curvature(model.float(), images.float(), labels), exact, rel=1e-3)


# Saturated softmax


@pytest.mark.parametrize("scale", [1e4, 1e8])
def test_a_saturated_network_is_flat_and_nothing_is_nan(scale: float) -> None:
    model, images = network("preact_resnet10", 2, 1, 10), pictures(1)
    model.linear.weight.data *= scale
    model.linear.bias.data *= scale
    predicted = model(images).argmax(1)
    assert (model(images).softmax(1).max(1).values == 1).all()
    right = per_image_curvature(model, images, predicted)
    wrong = per_image_curvature(model, images, (predicted + 1) % 10)
    for values in (right, wrong):
        for name in NAMES:
            assert torch.isfinite(getattr(values, name)).all(), name
        for name in ("trace", "frobenius_norm", "largest_eigenvalue"):
            assert (getattr(values, name) >= 0).all()
            assert (getattr(values, name) < 1e-12).all()
    assert (right.loss < 1e-15).all()
    assert (wrong.loss > 1).all()
    assert (wrong.gradient_norm > 1).all()


@pytest.mark.parametrize("gap", [30.0, 300.0, 700.0])
def test_tiny_curvature_keeps_its_relative_accuracy(gap: float) -> None:
    """Two classes: H = p (1 - p) (J0 - J1)(J0 - J1)^T, with 1 - p = exp(-gap) far below the machine's epsilon."""
    model, images = network("preact_resnet10", 2, 1, 2), pictures(1, 1)
    model.linear.bias.data[0] += gap - (model(images)[0, 0] - model(images)[0, 1]).item()
    x = images.clone().requires_grad_(True)
    logits = model(x)
    (slope,) = torch.autograd.grad(logits[0, 0] - logits[0, 1], x)
    q = np.exp(-float((logits[0, 0] - logits[0, 1]).detach()))
    values = per_image_curvature(model, images, torch.tensor([0]))
    assert values.trace.item() == pytest.approx(q / (1 + q) ** 2 * slope.norm().item() ** 2, rel=1e-9)
    assert values.largest_eigenvalue.item() == pytest.approx(values.trace.item(), rel=1e-9)
    assert values.gradient_norm.item() == pytest.approx(q / (1 + q) * slope.norm().item(), rel=1e-9)


logit_rows = st.integers(2, 12).flatmap(
    lambda classes: hnp.arrays(np.float64, classes, elements=st.floats(-1000, 1000, width=32))
)


@given(logits=logit_rows)
def test_the_factor_squares_to_the_softmax_hessian(logits: np.ndarray) -> None:
    log_p = torch.from_numpy(logits).log_softmax(0)
    p = log_p.exp()
    factor = softmax_hessian_factor(log_p)
    assert factor.shape == (len(p), len(p) - 1)
    square = factor @ factor.T
    torch.testing.assert_close(square, p.diag() - p[:, None] * p, rtol=0, atol=1e-15)
    # p (1 - p) on the diagonal also relative to itself, where the difference above has lost every digit.
    expected = p * -torch.expm1(log_p)
    others = torch.stack([torch.cat([p[:i], p[i + 1 :]]).sum() for i in range(len(p))])  # 1 - p without a difference
    near_one = p > 0.5
    expected[near_one] = (p * others)[near_one]
    torch.testing.assert_close(square.diagonal(), expected, rtol=1e-12, atol=1e-300)


@given(logits=st.lists(st.floats(-50, 50), min_size=4, max_size=4), shape=st.sampled_from([(2, 2), (4, 1), (1, 4)]))
def test_the_factor_of_many_images_is_that_of_each(logits: list[float], shape: tuple[int, int]) -> None:
    log_p = (torch.tensor(logits, dtype=torch.float64)[:, None] * torch.linspace(-1, 1, 5)).log_softmax(-1)
    together = softmax_hessian_factor(log_p.view(*shape, 5)).view(4, 5, 4)
    for i in range(4):
        torch.testing.assert_close(together[i], softmax_hessian_factor(log_p[i]), rtol=0, atol=0)


# Symmetries


@settings(max_examples=15)
@given(order=st.permutations(range(5)), architecture=st.sampled_from(ARCHITECTURES))
def test_permuted_images_give_permuted_rows(order: list[int], architecture: str) -> None:
    model, images, labels = network(architecture, 1, 1, 4), pictures(1, 5), torch.arange(5) % 4
    straight = per_image_curvature(model, images, labels)
    permuted = per_image_curvature(model, images[order], labels[order])
    assert_same(permuted, CurvatureColumns(**{name: getattr(straight, name)[order] for name in NAMES}))


@pytest.mark.parametrize("constant", [-3.0, 100.0])
def test_a_constant_added_to_all_logits_changes_nothing(constant: float) -> None:
    model, images, labels = network("cnn5", 2, 1, 10), pictures(1), torch.arange(3)
    before = per_image_curvature(model, images, labels)
    model.linear.bias.data += constant
    assert_same(per_image_curvature(model, images, labels), before)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("a", [0.1, 4.0])
def test_curvature_has_the_unit_of_one_over_input_squared(architecture: str, a: float) -> None:
    model, images, labels = network(architecture, 2, 1, 10), pictures(1), torch.arange(3)
    before = per_image_curvature(model, images, labels)
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    first.weight.data /= a
    after = per_image_curvature(model, images * a, labels)
    squared = dict.fromkeys(("trace", "frobenius_norm", "largest_eigenvalue"), a**-2)
    assert_same(after, before, gradient_norm=1 / a, **squared)


def test_the_hessian_does_not_depend_on_the_label_but_the_gradient_does() -> None:
    model, images = network("preact_resnet10", 2, 1, 10), pictures(1)
    one, two = (per_image_curvature(model, images, torch.full((3,), label)) for label in (1, 2))
    for name in ("trace", "frobenius_norm", "largest_eigenvalue"):
        assert torch.equal(getattr(one, name), getattr(two, name))
    assert (one.gradient_norm != two.gradient_norm).all()


# Refusals


def test_training_mode_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.eval\(\)"):
        per_image_curvature(network("cnn5", 1, 1, 4).train(), pictures(1), torch.arange(3))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_and_the_model_is_left_as_it_was(value: float) -> None:
    model = network("cnn5", 1, 1, 4)
    model.linear.weight.data[0, 0] = value
    model.linear.bias.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    with pytest.raises(UserError, match="not finite"):
        per_image_curvature(model, pictures(1), torch.arange(3))
    assert [p.requires_grad for p in model.parameters()] == before


@pytest.mark.parametrize("labels", [torch.tensor([0, 1, 4]), torch.tensor([[0, 1], [0, 1], [0, 1]])])
def test_labels_that_do_not_fit_are_refused(labels: Tensor) -> None:
    with pytest.raises(UserError, match="labels do not fit"):
        per_image_curvature(network("cnn5", 1, 1, 4), pictures(1), labels)


def test_the_model_and_images_are_left_as_they_were() -> None:
    model, images = network("preact_resnet10", 1, 1, 4), pictures(1)
    model.linear.bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = images.clone()
    values = per_image_curvature(model, images, torch.arange(3))
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(images, before)
    assert not images.requires_grad
    assert not any(getattr(values, name).requires_grad for name in NAMES)


# Files

LAST = Checkpoint(Arm("plain", 2), 4)


def rows_of(store: Store, study: Study, checkpoint: Checkpoint) -> pd.DataFrame:
    return read_parquet(store.curvature_path(study.name, checkpoint)).to_pandas()


def test_a_checkpoints_file_has_every_training_image_of_every_trial_in_order(trained: Store, tiny_study: Study) -> None:
    assert curve_checkpoint(tiny_study, LAST, trained)
    rows = rows_of(trained, tiny_study, LAST)
    assert rows.trial.tolist() == [0] * 100 + [1] * 100
    for trial in range(2):
        data, own = trial_data(tiny_study, "plain", trial), rows[rows.trial == trial]
        np.testing.assert_array_equal(own.image_id, data.train_ids)
        np.testing.assert_array_equal(own.true_label, data.true_train_labels)
        np.testing.assert_array_equal(own.given_label, data.train_labels)
        np.testing.assert_array_equal(own.is_noisy, data.is_noisy)
    assert set(rows.epoch) == {4}
    assert set(rows.k) == {2}
    assert set(rows.recipe) == {tiny_study.recipe_hash(LAST.arm)}


def test_a_checkpoints_values_are_those_of_its_weights_on_standardised_images(
    trained: Store, tiny_study: Study
) -> None:
    curve_checkpoint(tiny_study, LAST, trained)
    rows = rows_of(trained, tiny_study, LAST)
    weights, _ = load_checkpoint(trained, tiny_study, LAST)
    for trial in range(2):
        data = trial_data(tiny_study, "plain", trial)
        model = build("preact_resnet10", 2, 1, 10).double().eval()
        load_state(model, {name: tensor[trial].double() for name, tensor in weights.items()})
        for position in (0, 99, *np.flatnonzero(data.is_noisy)[:2]):
            raw = load("digits").images[data.train_ids[position]].astype(np.float64)
            image = torch.from_numpy((raw - data.mean) / data.std).permute(2, 0, 1)
            row = rows[(rows.trial == trial) & (rows.image_id == data.train_ids[position])].iloc[0]
            expected = dense(model, image, torch.tensor(data.train_labels[position]))
            for name in NAMES:
                assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-6), name


def test_trials_beyond_one_stack_keep_their_order_in_the_file(make_study: Any, store: Store) -> None:
    study = make_study({"architecture": "cnn5"}, trials=9, data={"dataset": "digits", "num_train": 40})
    checkpoint = Checkpoint(Arm("plain", 1), 0)
    train_arm(study, checkpoint.arm, store, 0)
    curve_checkpoint(study, checkpoint, store)
    rows = rows_of(store, study, checkpoint)
    weights, _ = load_checkpoint(store, study, checkpoint)
    for trial in (0, 7, 8):
        data = trial_data(study, "plain", trial)
        model = build("cnn5", 1, 1, 10).double().eval()
        load_state(model, {name: tensor[trial].double() for name, tensor in weights.items()})
        raw = load("digits").images[data.train_ids].astype(np.float64)
        images = torch.from_numpy((raw - data.mean) / data.std).permute(0, 3, 1, 2)
        expected = per_image_curvature(model, images, torch.from_numpy(data.train_labels))
        np.testing.assert_allclose(rows[rows.trial == trial].trace, expected.trace[:, 0], rtol=1e-3, atol=1e-7)
        np.testing.assert_array_equal(rows[rows.trial == trial].image_id, data.train_ids)


def test_the_batch_size_does_not_matter_for_the_file(trained: Store, tiny_study: Study, tmp_path: Any) -> None:
    curve_checkpoint(tiny_study, LAST, trained, dtype=torch.float64)
    one = rows_of(trained, tiny_study, LAST)
    trained.curvature_path("tiny", LAST).unlink()
    assert curve_checkpoint(tiny_study, LAST, trained, dtype=torch.float64, batch_size=33)
    two = rows_of(trained, tiny_study, LAST)
    pd.testing.assert_frame_equal(one, two, rtol=1e-9, atol=1e-12)


def test_current_curvature_is_not_computed_again_and_equal_weights_give_equal_bytes(
    trained: Store, tiny_study: Study
) -> None:
    path = trained.curvature_path("tiny", LAST)
    assert missing_curvature(trained, tiny_study) == list(tiny_study.iter_checkpoints())
    assert curve_checkpoint(tiny_study, LAST, trained)
    assert LAST not in missing_curvature(trained, tiny_study)
    content, written = path.read_bytes(), path.stat().st_mtime_ns
    assert not curve_checkpoint(tiny_study, LAST, trained)
    assert path.stat().st_mtime_ns == written
    path.with_suffix(".json").unlink()
    assert curve_checkpoint(tiny_study, LAST, trained)
    assert path.read_bytes() == content


@pytest.mark.parametrize("harm", ["truncated", "altered", "deleted", "manifest"])
def test_harmed_curvature_is_computed_again(harm: str, trained: Store, tiny_study: Study) -> None:
    curve_checkpoint(tiny_study, LAST, trained)
    path = trained.curvature_path("tiny", LAST)
    content = path.read_bytes()
    if harm == "manifest":
        path.with_suffix(".json").write_text('{"files"')
    elif harm == "deleted":
        path.unlink()
    else:
        path.write_bytes(content[:-9] if harm == "truncated" else content[:100] + b"\x00" + content[101:])
    assert curve_checkpoint(tiny_study, LAST, trained)
    assert path.read_bytes() == content


def test_curvature_of_other_weights_is_computed_again(trained: Store, tiny_study: Study) -> None:
    curve_checkpoint(tiny_study, LAST, trained)
    before = rows_of(trained, tiny_study, LAST)
    for path in trained.arm_folder("tiny", LAST.arm.key).iterdir():
        path.unlink()
    train_arm(tiny_study, LAST.arm, trained, 4, dtype=torch.float64)
    assert LAST in missing_curvature(trained, tiny_study)
    assert curve_checkpoint(tiny_study, LAST, trained)
    assert (rows_of(trained, tiny_study, LAST).trace != before.trace).any()


def test_curvature_of_an_earlier_version_of_the_code_is_computed_again(
    trained: Store, tiny_study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    curve_checkpoint(tiny_study, LAST, trained)
    for module in (provenance, checkpoint_module):
        monkeypatch.setattr(module, "CURVATURE_VERSION", "next")
    assert curve_checkpoint(tiny_study, LAST, trained)
    assert not curve_checkpoint(tiny_study, LAST, trained)


def test_curvature_computed_with_other_settings_is_not_current(trained: Store, tiny_study: Study) -> None:
    curve_checkpoint(tiny_study, LAST, trained)
    stored, weights = curvature_manifest(trained, tiny_study, LAST), checkpoint_manifest(trained, tiny_study, LAST)
    assert curvature_is_current(stored, weights)
    assert not curvature_is_current(stored, weights, {"probes": 10})


def test_an_untrained_a_foreign_and_a_harmed_checkpoint_are_refused(
    trained: Store, tiny_study: Study, make_study: Any
) -> None:
    with pytest.raises(StaleError, match="another recipe"):
        curve_checkpoint(make_study({"label_noise": 0.1}), LAST, trained)
    path = trained.checkpoint_path("tiny", LAST)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StaleError, match="damaged"):
        curve_checkpoint(tiny_study, LAST, trained)
    trained.checkpoint_manifest_path("tiny", LAST).unlink()
    with pytest.raises(StaleError, match="has not been trained"):
        curve_checkpoint(tiny_study, LAST, trained)
    assert not trained.curvature_path("tiny", LAST).exists()
