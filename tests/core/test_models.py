"""Architectures: published sizes, and networks that share a module without touching each other."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from dd_core.errors import StaleError
from dd_core.models.build import build, build_trials
from dd_core.models.stacking import load_state, stack_states
from dd_core.study.study import Arm
from dd_core.training.optimization import make_optimizer

ARCHITECTURES = ("preact_resnet10", "preact_resnet18", "cnn5")
# Deep Double Descent's ResNet18k on CIFAR-10, from the authors' code.
RESNET18K = {
    1: 2_947,
    4: 44_446,
    8: 176_050,
    10: 274_540,
    12: 394_822,
    16: 700_762,
    18: 886_420,
    32: 2_796_202,
    64: 11_171_146,
}


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(("k", "expected"), RESNET18K.items())
def test_resnet18k_has_the_published_number_of_parameters(k: int, expected: int) -> None:
    with torch.device("meta"):
        assert size(build("preact_resnet18", k, 3, 10)) == expected


def test_resnet10k_has_the_number_of_parameters_of_its_definition() -> None:
    assert size(build("preact_resnet10", 16, 1, 10)) == 307_834


def test_cnn5_has_the_number_of_parameters_of_its_definition() -> None:
    """Four convolutions with bias and BatchNorm, widths k, 2k, 4k, 8k, and a linear layer (Nakkiran et al. 2019)."""
    k, widths = 3, [3, 3, 6, 12, 24]
    convolutions = sum(9 * a * b + b + 2 * b for a, b in itertools.pairwise(widths))
    assert size(build("cnn5", k, 3, 10)) == convolutions + 24 * 10 + 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_unknown_architecture_or_size_fails_and_all_known_ones_classify(architecture: str) -> None:
    for channels, side, classes in ((1, 8, 10), (3, 32, 100)):
        images = torch.randn(2, channels, side, side)
        assert build(architecture, 1, channels, classes)(images).shape == (2, classes)
    with pytest.raises(KeyError):
        build("vgg", 1, 1, 10)


def resnet_by_hand(state: dict[str, Tensor], x: Tensor, blocks_per_stage: int) -> Tensor:
    """ResNet18k as in the authors' models/resnet18k.py, in eval mode, written with functions."""

    def activated(name: str, x: Tensor) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{key}"][:, None, None] for key in ("weight", "bias", "running_mean", "running_var")
        )
        return (weight * (x - mean) / (var + 1e-5).sqrt() + bias).clamp(min=0)

    x = functional.conv2d(x, state["conv1.weight"], padding=1)
    for block in range(4 * blocks_per_stage):
        name, stride = f"blocks.{block}", 2 if block % blocks_per_stage == 0 and block else 1
        out = activated(f"{name}.bn1", x)
        # The 1x1 convolution takes the activated input, the identity the raw one.
        projection = state.get(f"{name}.shortcut.weight")
        assert (projection is not None) == (stride == 2)
        shortcut = x if projection is None else functional.conv2d(out, projection, stride=stride)
        out = functional.conv2d(out, state[f"{name}.conv1.weight"], stride=stride, padding=1)
        x = functional.conv2d(activated(f"{name}.bn2", out), state[f"{name}.conv2.weight"], padding=1) + shortcut
    return x.mean((2, 3)) @ state["linear.weight"].T + state["linear.bias"]


@pytest.mark.parametrize(("architecture", "blocks"), [("preact_resnet18", 2), ("preact_resnet10", 1)])
def test_resnets_are_those_of_the_paper(architecture: str, blocks: int) -> None:
    (network,) = networks(architecture, 3, 3, 1)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    close(network.eval()(images), resnet_by_hand(network.state_dict(), images, blocks))


def test_cnn5_is_that_of_the_paper() -> None:
    """Convolution, BatchNorm, ReLU, pooling 1, 2, 2, 2 and then over all that is left (32 / 8 = 4), linear."""
    (network,) = networks("cnn5", 3, 3, 1)
    state, x = network.eval().state_dict(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    logits = network(x)
    convolutions = [name.removesuffix(".weight") for name, tensor in state.items() if tensor.ndim == 4]
    norms = [name.removesuffix(".running_var") for name in state if name.endswith("running_var")]
    for convolution, norm, pool in zip(convolutions, norms, (1, 2, 2, 2), strict=True):
        x = functional.conv2d(x, state[f"{convolution}.weight"], state[f"{convolution}.bias"], padding=1)
        mean, var, weight, bias = (state[f"{norm}.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        x = functional.batch_norm(x, mean, var, weight, bias).clamp(min=0)
        x = functional.max_pool2d(x, pool)
    close(logits, x.amax((2, 3)) @ state["linear.weight"].T + state["linear.bias"])


def networks(architecture: str, k: int, channels: int, trials: int) -> list[nn.Module]:
    """Separate float64 networks with weights and BatchNorm statistics of their own."""
    torch.manual_seed(0)
    made = []
    for _ in range(trials):
        network = build(architecture, k, channels, 10).double()
        for tensor in network.state_dict().values():
            tensor.mul_(torch.empty_like(tensor).uniform_(0.5, 1.5)).add_(torch.empty_like(tensor).uniform_(0, 0.1))
        made.append(network)
    return made


def stacked(separate: list[nn.Module], architecture: str, k: int, channels: int) -> nn.Module:
    model = build(architecture, k, channels, 10, trials=len(separate)).double()
    load_state(model, stack_states([network.state_dict() for network in separate]))
    return model.to(memory_format=torch.channels_last)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("trials", [1, 3])
@pytest.mark.parametrize(("k", "channels"), [(1, 1), (2, 3)])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_stacked_networks_compute_what_separate_ones_do(
    architecture: str, k: int, channels: int, trials: int, training: bool
) -> None:
    separate = networks(architecture, k, channels, trials)
    together = stacked(separate, architecture, k, channels).train(training)
    images = torch.randn(5, trials * channels, 8, 8, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(5, trials, 10, dtype=torch.float64)
    logits = together(images.contiguous(memory_format=torch.channels_last))
    (weights * logits).sum().backward()
    gradients = {name: p.grad for name, p in together.named_parameters()}
    buffers = dict(together.named_buffers())
    for t, network in enumerate(separate):
        network.train(training)
        own = images.detach()[:, t * channels : (t + 1) * channels].clone().requires_grad_(True)
        expected = network(own)
        (weights[:, t] * expected).sum().backward()
        close(logits[:, t], expected)
        assert images.grad is not None
        close(images.grad[:, t * channels : (t + 1) * channels], own.grad)
        for name, parameter in network.named_parameters():
            close(gradients[name].chunk(trials)[t], parameter.grad)  # type: ignore[union-attr]
        for name, buffer in network.named_buffers():
            close(buffers[name].chunk(trials)[t], buffer)


def close(actual: Tensor, expected: Tensor | None) -> None:
    assert expected is not None
    scale = max(1.0, float(expected.detach().abs().max()))
    assert (actual - expected).abs().max() < 1e-10 * scale


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_initialisation_of_a_trial_does_not_depend_on_its_company(architecture: str, make_study: Any) -> None:
    study, arm = make_study({"architecture": architecture}, trials=4), Arm("plain", 2)
    together = build_trials(study, arm, [0, 1, 2, 3]).state_dict()
    for trials in ([2], [3, 2]):
        alone = build_trials(study, arm, trials).state_dict()
        for name, tensor in alone.items():
            for position, trial in enumerate(trials):
                assert torch.equal(tensor.chunk(len(trials))[position], together[name].chunk(4)[trial])
    first, second = (together["linear.weight"].chunk(4)[t] for t in (0, 1))
    assert not torch.equal(first, second)


def test_building_networks_leaves_the_callers_random_numbers_alone(tiny_study: Any) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    build_trials(tiny_study, Arm("plain", 1), [0, 1])
    assert torch.equal(torch.rand(3), expected)


def test_the_initialisation_is_that_of_torchs_own_layers() -> None:
    """He et al. 2015 as in torch: uniform within 1/sqrt(fan_in); BatchNorm 1 and 0."""
    torch.manual_seed(0)
    network = build("preact_resnet18", 8, 3, 10)
    for name, module in network.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.bias, torch.zeros_like(module.bias))
        elif isinstance(weight, Tensor):
            bound = weight[0].numel() ** -0.5
            assert 0.95 * bound < weight.abs().max() <= bound, name
            assert float(weight.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.15)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_diverged_network_leaves_its_neighbours_untouched(architecture: str, optimizer: str, make_study: Any) -> None:
    """Bit for bit: what a NaN in trial 1 does to trials 0 and 2 in three steps is nothing."""
    study = make_study({"architecture": architecture, "optimizer": {"name": optimizer, "learning_rate": 0.01}})
    results = []
    for broken in (False, True):
        model = build_trials(study, Arm("plain", 2), [0, 1, 2])
        if broken:
            with torch.no_grad():
                next(model.parameters()).chunk(3)[1].fill_(torch.nan)
        settings = make_optimizer(model, study.variants["plain"].optimizer)
        torch.manual_seed(0)
        for _ in range(3):
            logits = model(torch.randn(6, 3, 8, 8))
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), torch.arange(18) % 10, reduction="none")
            settings.zero_grad()
            loss.view(6, 3).mean(0).sum().backward()
            settings.step()
        results.append(model.state_dict())
    for name, tensor in results[0].items():
        sound, harmed = tensor.chunk(3), results[1][name].chunk(3)
        assert torch.equal(sound[0], harmed[0]), name
        assert torch.equal(sound[2], harmed[2]), name
    assert results[1]["linear.weight"].chunk(3)[1].isnan().all()


@pytest.mark.parametrize(
    "other", [("preact_resnet18", 2, 1, 10), ("preact_resnet10", 3, 1, 10), ("preact_resnet10", 2, 1, 100)]
)
def test_weights_of_another_network_are_refused_and_nothing_is_copied(other: tuple[Any, ...]) -> None:
    model = build("preact_resnet10", 2, 1, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StaleError, match="not of this model"):
        load_state(model, build(*other).state_dict())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_missing_tensor_is_refused_by_name() -> None:
    model = build("cnn5", 1, 1, 10)
    state = dict(model.state_dict())
    del state["linear.bias"]
    with pytest.raises(StaleError, match=r"linear\.bias"):
        load_state(model, state)
