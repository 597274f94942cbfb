"""The published finite difference: against its published loop, dense Hessians, and its independence of batches."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd.functional import hessian
from torch.nn.functional import cross_entropy

from dd_core.curvature.input_space.finite_difference import finite_difference_curvature
from dd_core.curvature.input_space.signs import Stream, rademacher
from dd_core.errors import UserError
from dd_core.machine.memory import in_blocks, is_out_of_memory
from dd_core.models.build import build
from dd_core.study.curvature_names import columns_of_step
from tests.core.dense import Noted

Values = dict[str, Tensor]


def network(classes: int = 10, architecture: str = "preact_resnet10", k: int = 4) -> nn.Module:
    """Float64, in eval mode, with BatchNorm statistics as after some training."""
    torch.manual_seed(0)
    model = build(architecture, k, 1, classes).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            for tensor in (module.running_mean, module.bias.data):
                tensor.normal_(0, 0.3)
            for tensor in (module.running_var, module.weight.data):
                tensor.uniform_(0.5, 2)
    # Logits of order 1, so that no image is saturated.
    spread = model(pictures(20)).std()
    for tensor in (model.linear.weight.data, model.linear.bias.data):
        tensor /= spread
    return model


def smooth_network() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Softplus(), nn.Flatten(), nn.Linear(36, 8), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(8, 4)).double().eval()


def pictures(number: int, side: int = 8) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(number, 1, side, side, dtype=torch.float64)


def data(number: int, classes: int = 10, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    return pictures(number, side), torch.arange(number) % classes, 1000 + 7 * torch.arange(number)


def published(
    model: nn.Module, images: Tensor, labels: Tensor, ids: Tensor, h: float, batch: int, probes: int
) -> tuple[Tensor, Tensor]:
    """``compute_curvature_per_image`` of seed 002, pass by pass; only the signs come from the ids."""
    criterion = nn.CrossEntropyLoss()
    curvature, directional = [], []
    for start in range(0, len(images), batch):
        batch_data, batch_labels = images[start : start + batch], labels[start : start + batch]
        signs = rademacher(ids[start : start + batch], probes, (1, 8, 8), seed=3, stream=Stream.FINITE_DIFFERENCE)
        num_samples = batch_data.shape[0]
        regr, eigs = (torch.zeros(num_samples, dtype=torch.float64) for _ in range(2))
        for i in range(probes):
            v = h * signs[:, i].double()
            batch_data = batch_data.detach().requires_grad_(True)
            outputs_pos = model(batch_data + v)
            outputs_orig = model(batch_data)
            loss_pos = criterion(outputs_pos, batch_labels)
            loss_orig = criterion(outputs_orig, batch_labels)
            grad_diff = torch.autograd.grad(loss_pos - loss_orig, batch_data)[0]
            regr += grad_diff.reshape(num_samples, -1).norm(dim=1)
            eigs += (v.reshape(num_samples, -1) * grad_diff.reshape(num_samples, -1)).sum(dim=1)
        curvature.append(regr / probes)
        directional.append(eigs / probes)
    return torch.cat(curvature), torch.cat(directional)


@pytest.mark.parametrize("architecture", ["preact_resnet10", "cnn5"])
@pytest.mark.parametrize("h", [1e-3, 3.0])
@pytest.mark.parametrize(("normalisation", "batch"), [("mean", 8), ("mean", 32), ("sum", 1), ("per_step", 1)])
def test_values_are_those_of_the_published_loop(h: float, normalisation: Any, batch: int, architecture: str) -> None:
    """Of 20 images, batches of 8 leave one of 4 and a batch of 32 is one of 20; the mean of 1 is the sum."""
    model, (images, labels, ids) = network(architecture=architecture), data(20)
    norm, directional = published(model, images, labels, ids, h, batch, 4)
    scale = h if normalisation == "per_step" else 1
    ours = finite_difference_curvature(
        model,
        images,
        labels,
        ids,
        steps=(h,),
        num_probes=4,
        normalisation=normalisation,
        mean_batch_size=batch if normalisation == "mean" else None,
        batch_size=17,
        seed=3,
    )
    names = columns_of_step(h)
    assert set(ours) == set(names)
    torch.testing.assert_close(ours[names[0]], norm / scale, rtol=1e-9, atol=0)
    # The published sum over pixels has terms of both signs: its own rounding is relative to their size.
    torch.testing.assert_close(ours[names[2]], directional / scale**2, rtol=1e-8, atol=1e-11 * norm.max().item())


def test_single_precision_gives_the_published_score_up_to_the_rounding_of_two_gradients() -> None:
    model, (images, labels, ids) = network(), data(20)
    exact = 20 * published(model, images, labels, ids, 1e-3, 20, 4)[0]
    x = images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(cross_entropy(model(x), labels, reduction="sum"), x)
    ours = finite_difference_curvature(
        model.float(), images.float(), labels, ids, steps=(1e-3,), num_probes=4, normalisation="sum", seed=3
    )
    rounding = torch.finfo(torch.float32).eps * gradient.flatten(1).norm(dim=1)
    # The moved image is rounded as well, to 1e-7, which is 1e-4 of the step.
    assert ((ours["fd_norm_h0p001"] - exact).abs() < 4 * rounding + 1e-4 * exact).all()


def hessians(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """(N, D, D) by double backward of the loss, image by image."""
    shape = (1, *images.shape[1:])
    found = [
        hessian(lambda x, y=y: cross_entropy(model(x.view(shape)), y.view(1)), image.reshape(-1), vectorize=True)
        for image, y in zip(images, labels, strict=True)
    ]
    return torch.stack(found)


def test_small_steps_in_a_smooth_network_give_products_with_its_hessian() -> None:
    model, (images, labels, ids) = smooth_network(), data(5, 4, side=5)
    matrices = hessians(model, images, labels)
    signs = rademacher(ids, 6, (25,), seed=0, stream=Stream.FINITE_DIFFERENCE).double()
    products = signs @ matrices
    ours = finite_difference_curvature(model, images, labels, ids, steps=(1e-5,), num_probes=6)
    norms, forms = products.norm(dim=-1), (products * signs).sum(-1)
    norm, norm_error, directional, directional_error = (ours[name] for name in columns_of_step(1e-5))
    torch.testing.assert_close(norm, norms.mean(-1), rtol=1e-4, atol=0)
    torch.testing.assert_close(norm_error, norms.std(-1) / 6**0.5, rtol=1e-3, atol=1e-8)
    torch.testing.assert_close(directional, forms.mean(-1), rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(directional_error, forms.std(-1) / 6**0.5, rtol=1e-3, atol=1e-6)


def test_many_probes_find_the_trace_within_the_stated_error() -> None:
    model, (images, labels, ids) = smooth_network(), data(8, 4, side=5)
    trace = hessians(model, images, labels).diagonal(dim1=1, dim2=2).sum(-1)
    ours = finite_difference_curvature(model, images, labels, ids, steps=(1e-5,), num_probes=1000)
    deviations = (ours["fd_directional_h0p00001"] - trace) / ours["fd_directional_h0p00001_standard_error"]
    assert (deviations.abs() < 4).all()
    assert (ours["fd_directional_h0p00001_standard_error"] < 0.2 * trace.abs().max()).all()


# Nothing but the image itself


def single(number: int = 30) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    images, labels, ids = data(number)
    return network().float(), images.float(), labels, ids


def assert_same(ours: Values, theirs: Values, rel: float) -> None:
    assert list(ours) == list(theirs)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=rel, atol=0, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("batch_size", [1, 16, 29, 30, 64])
def test_the_batch_size_does_not_matter_in_single_precision(batch_size: int, layout: torch.memory_format) -> None:
    model, images, labels, ids = single()
    model = model.to(memory_format=layout)
    settings = {"steps": (1e-3, 1.0), "num_probes": 2}
    whole = finite_difference_curvature(model, images, labels, ids, **settings)
    other = finite_difference_curvature(model, images, labels, ids, batch_size=batch_size, **settings)
    assert_same(other, whole, rel=1e-6)


def test_permuted_images_give_permuted_rows() -> None:
    model, images, labels, ids = single()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(2))
    straight = finite_difference_curvature(model, images, labels, ids, num_probes=2)
    permuted = finite_difference_curvature(model, images[order], labels[order], ids[order], num_probes=2)
    assert_same(permuted, {name: column[order] for name, column in straight.items()}, rel=1e-6)


@settings(max_examples=5)
@given(cut=st.integers(0, 30))
def test_shards_concatenate_to_the_whole(cut: int) -> None:
    model, images, labels, ids = single()
    whole = finite_difference_curvature(model, images, labels, ids, steps=(1e-3,), num_probes=2)
    parts = [
        finite_difference_curvature(model, images[part], labels[part], ids[part], steps=(1e-3,), num_probes=2)
        for part in (slice(0, cut), slice(cut, 30))
    ]
    assert_same({name: torch.cat([part[name] for part in parts]) for name in whole}, whole, rel=1e-6)


def test_steps_do_not_influence_each_other_and_share_their_probes() -> None:
    model, images, labels, ids = single(8)
    both = finite_difference_curvature(model, images, labels, ids, steps=(3.0, 1e-3), num_probes=2)
    for h in (1e-3, 3.0):
        alone = finite_difference_curvature(model, images, labels, ids, steps=(h,), num_probes=2)
        assert_same(alone, {name: both[name] for name in alone}, rel=1e-6)


def test_one_probe_has_no_standard_error() -> None:
    model, images, labels, ids = single(3)
    ours = finite_difference_curvature(model, images, labels, ids, steps=(1.0,), num_probes=1)
    assert ours["fd_norm_h1_standard_error"].isnan().all()
    assert ours["fd_norm_h1"].isfinite().all()


def test_saturated_images_have_no_curvature_and_no_nan() -> None:
    model, images, _, ids = single(4)
    for tensor in (model.linear.weight.data, model.linear.bias.data):
        tensor *= 1e6
    ours = finite_difference_curvature(model, images, model(images).argmax(1), ids, steps=(1e-3,), num_probes=2)
    assert all(torch.equal(column, torch.zeros(4).double()) for column in ours.values())


# The model is left alone


def test_parameters_get_no_gradients_and_everything_is_put_back() -> None:
    model, images, labels, ids = single(4)
    model.linear.bias.requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    seen = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert module is not model
        seen.append(any(p.requires_grad for p in module.parameters()) or torch.backends.cudnn.allow_tf32)

    handle = model.register_forward_pre_hook(look)
    tf32 = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    with torch.no_grad():  # gradients of the images are needed all the same
        finite_difference_curvature(model, images, labels, ids, num_probes=1)
    handle.remove()
    assert seen
    assert not any(seen)
    assert tf32 == (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all("forward" not in vars(module) for module in model.modules())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert not images.requires_grad


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model, images, labels, ids = single(4)
    flags = [p.requires_grad for p in model.parameters()]
    with pytest.raises(UserError, match="labels from 0 to 10 do not fit the model's 10 classes"):
        finite_difference_curvature(model, images, labels + torch.tensor([0, 0, 0, 7]), ids)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all("forward" not in vars(module) for module in model.modules())


# Refusals


def broken_weights(model: nn.Module) -> None:
    model.linear.weight.data[0, 0] = torch.nan


@pytest.mark.parametrize(
    ("harm", "sentence"),
    [
        (broken_weights, "not finite"),
        (lambda model: model.train(), "the model is in training mode"),
        (lambda model: model.blocks[0].bn1.train(), r"layer 'blocks.0.bn1' \(BatchNorm\) is in training mode"),
        (lambda model: model.double(), "parameter 'conv1.weight' is torch.float64 and the images are torch.float32"),
    ],
)
def test_unfit_models_are_refused(harm: Callable[[Any], Any], sentence: str) -> None:
    model, images, labels, ids = single(3)
    harm(model)
    with pytest.raises(UserError, match=sentence):
        finite_difference_curvature(model, images, labels, ids)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"steps": ()}, "steps must be"),
        ({"steps": (1.0, 1)}, "steps must be"),
        ({"steps": (0.0,)}, "positive finite step"),
        ({"num_probes": 0}, "at least one probe"),
        ({"normalisation": "max"}, "choose from sum, per_step, mean"),
        ({"normalisation": "mean"}, "needs mean_batch_size"),
        ({"mean_batch_size": 50}, "belongs to the normalisation 'mean'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        finite_difference_curvature(*single(3), **settings)


def test_autocast_half_precision_and_misfit_data_are_refused() -> None:
    model, images, labels, ids = single(3)
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(UserError, match=r"outside of torch\.autocast"):
        finite_difference_curvature(model, images, labels, ids)
    with pytest.raises(UserError, match="float32 or float64"):
        finite_difference_curvature(model.bfloat16(), images.bfloat16(), labels, ids)
    with pytest.raises(UserError, match=r"labels must be int64 of shape \(3,\)"):
        finite_difference_curvature(model, images, labels[:2], ids)
    with pytest.raises(UserError, match="image ids must be int64"):
        finite_difference_curvature(model, images, labels, ids.float())


# Memory

SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"),
    MemoryError("bad allocation"),
]


class Small(nn.Module):
    """A network that has no room for more than so many images."""

    def __init__(self, model: nn.Module, room: int, error: BaseException):
        """Counts the passes that fitted by their size."""
        super().__init__()
        self.model, self.room, self.error = model, room, error
        self.sizes = Noted()

    def forward(self, images: Tensor) -> Tensor:
        """As the network inside."""
        if len(images) > self.room:
            raise self.error
        self.sizes.append(len(images))
        result: Tensor = self.model(images)
        return result


@pytest.mark.parametrize("error", SHORTAGES)
def test_out_of_memory_halves_the_pass_and_goes_on(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    model, images, labels, ids = single()
    large, small = (Small(model, room, error).eval() for room in (1000, 26))
    whole = finite_difference_curvature(large, images, labels, ids, steps=(1e-3,), num_probes=2)
    ours = finite_difference_curvature(small, images, labels, ids, steps=(1e-3,), num_probes=2)
    assert_same(ours, whole, rel=1e-6)
    assert max(small.sizes) == 25
    assert "out of memory with 30 examples per pass, going on with 50" in caplog.text


def test_a_single_image_that_does_not_fit_is_refused_with_the_numbers() -> None:
    model, images, labels, ids = single(3)
    with pytest.raises(UserError, match=r"even with 1 example per pass, after beginning with 100 \(CUDA out of memory"):
        finite_difference_curvature(Small(model, 0, SHORTAGES[0]).eval(), images, labels, ids)


def test_another_error_of_the_model_is_not_taken_for_a_shortage() -> None:
    model, images, labels, ids = single(3)
    with pytest.raises(UserError, match=r"images of shape \(1, 8, 8\) do not fit the model: mat1 and mat2"):
        finite_difference_curvature(Small(model, 0, RuntimeError("mat1 and mat2")).eval(), images, labels, ids)


def test_pytorchs_own_shortage_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(ValueError("DefaultCPUAllocator"))


@given(total=st.integers(0, 60), size=st.integers(1, 40), room=st.integers(1, 40))
def test_blocks_cover_every_item_once_in_order(total: int, size: int, room: int) -> None:
    def compute(start: int, stop: int, size: int) -> list[int]:
        assert 0 < stop - start <= size
        if size > room:
            raise MemoryError
        return list(range(start, stop))

    blocks = list(in_blocks(compute, total, size))
    assert list(itertools.chain(*blocks)) == list(range(total))
    assert len({len(block) for block in blocks[:-1]}) <= 1
