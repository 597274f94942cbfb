"""Optimisers, schedules and clipping against plain torch, and trial by trial in a stack."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from dd_core.models.build import build, build_trials
from dd_core.models.stacking import load_state
from dd_core.study.calendar import Calendar
from dd_core.study.recipe import Optimizer, Schedule
from dd_core.study.study import Arm
from dd_core.tasks.images import Classification
from dd_core.tasks.losses import make_loss
from dd_core.training.optimization import clip_gradients, gradient_norms, learning_rate, make_optimizer
from dd_core.training.step import Stepper

ARM = Arm("plain", 2)
# Settings of the study, and the same in torch for one network.
OPTIMIZERS: dict[str, tuple[dict[str, Any], Any]] = {
    "adam": (
        {"name": "adam", "learning_rate": 0.01, "weight_decay": 0.1, "betas": (0.8, 0.99)},
        lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.99)),
    ),
    "adamw": (
        {"name": "adamw", "learning_rate": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
    "sgd": (
        {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    ),
    "nesterov": (
        {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": True},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ),
}


def _loss(logits: Tensor, labels: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits, labels)


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_stacked_steps_are_those_of_plain_torch_for_each_trial(name: str, clip: float | None, make_study: Any) -> None:
    """Float64, four steps, to 1e-12: weights of every trial, clipped by its own norm."""
    settings, plain_optimizer = OPTIMIZERS[name]
    study = make_study({"optimizer": settings})
    trials = [0, 1, 2]
    stack = build_trials(study, ARM, trials).double()
    optimizer = make_optimizer(stack, study.variants["plain"].optimizer)
    parameters = list(stack.parameters())
    alone = [build_trials(study, ARM, [trial]).double() for trial in trials]
    networks = []
    for single in alone:
        network = build("preact_resnet10", 2, 1, 10).double()
        load_state(network, dict(single.state_dict()))
        networks.append((network, plain_optimizer(network.parameters())))
    random = torch.Generator().manual_seed(0)
    for _ in range(4):
        images = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=random) * torch.tensor([0.1, 1, 5]).view(
            3, 1, 1
        )
        labels = torch.randint(10, (8, 3), generator=random)
        logits = stack(images)
        optimizer.zero_grad()
        sum(_loss(logits[:, t], labels[:, t]) for t in trials).backward()
        if clip is not None:
            clip_gradients(parameters, 3, clip)
        optimizer.step()
        for t, (network, own) in enumerate(networks):
            own.zero_grad()
            _loss(network(images[:, t : t + 1]), labels[:, t]).backward()
            if clip is not None:
                nn.utils.clip_grad_norm_(network.parameters(), clip)
            own.step()
    for t, (network, _) in enumerate(networks):
        for key, tensor in network.state_dict().items():
            assert (stack.state_dict()[key].chunk(3)[t] - tensor).abs().max() < 1e-12, (t, key)


# What three trials of a stack have of their own, and torch's optimiser of each.
RATES: dict[str, tuple[dict[str, Any], list[dict[str, float]]]] = {
    "sgd": (
        {"name": "sgd", "learning_rate": 1.0, "clip_norm": 0.5},
        [
            {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01},
            {"learning_rate": 0.02, "momentum": 0.5, "weight_decay": 0.0},
            {"learning_rate": 0.3, "momentum": 0.0, "weight_decay": 0.1},
        ],
    ),
    "nesterov": (
        {"name": "sgd", "learning_rate": 1.0, "nesterov": True, "decay_all": False},
        [{"learning_rate": 0.1 / n, "momentum": 0.9 / n, "weight_decay": 0.01 * n} for n in (1, 2, 3)],
    ),
    "adam": (
        {"name": "adam", "learning_rate": 1.0, "betas": (0.8, 0.99)},
        [{"learning_rate": 0.01 * n, "weight_decay": 0.1 / n} for n in (1, 2, 3)],
    ),
    "adamw": (
        {"name": "adamw", "learning_rate": 1.0, "decay_all": False},
        [{"learning_rate": 0.01 * n, "weight_decay": 0.1 * (n - 1)} for n in (1, 2, 3)],
    ),
}


def _plain(settings: Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """What a user of torch would write."""
    spared = [] if settings.decay_all else [p for n, p in network.named_parameters() if ".bn" in n or "bias" in n]
    others = [p for p in network.parameters() if not any(p is other for other in spared)]
    groups = [{"params": others, "weight_decay": settings.weight_decay}, {"params": spared, "weight_decay": 0.0}]
    if settings.name == "sgd":
        return torch.optim.SGD(groups, momentum=settings.momentum, nesterov=settings.nesterov, foreach=False)
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
    return kind(groups, betas=settings.betas, foreach=False)


@pytest.mark.parametrize("name", RATES)
def test_each_trial_of_a_stack_may_have_rates_of_its_own(name: str, make_study: Any) -> None:
    """Float64, four steps of a schedule, to 1e-12 as torch.optim trains each network; states have torch's names."""
    common, own = RATES[name]
    study = make_study({"optimizer": {**common, **own[0]}})
    variant, trials = study.variants["plain"], [0, 1, 2]
    settings = [Optimizer.model_validate({**common, **rates}) for rates in own]
    stack = build_trials(study, ARM, trials).double()
    task = Classification(make_loss(variant.loss))
    stepper = Stepper(stack, task, variant, 3, torch.device("cpu"), 8, settings)
    networks = [build("preact_resnet10", 2, 1, 10).double() for _ in trials]
    for trial, network in enumerate(networks):
        load_state(network, dict(build_trials(study, ARM, [trial]).state_dict()))
    optimizers = [_plain(each, network) for each, network in zip(settings, networks, strict=True)]
    random = torch.Generator().manual_seed(0)
    for multiple in (0.5, 1.0, 0.7, 0.1):
        images = torch.randn(8, 3, 8, 8, dtype=torch.float64, generator=random)
        labels = torch.randint(10, (8, 3), generator=random)
        rates = [multiple * each.learning_rate for each in settings]
        stepper(lambda start, stop, images=images, labels=labels: (images, labels), 0, 8, rates)  # type: ignore[misc]
        for t, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
            for group in optimizer.param_groups:
                group["lr"] = rates[t]
            optimizer.zero_grad()
            _loss(network(images[:, t : t + 1]), labels[:, t]).backward()
            if variant.optimizer.clip_norm is not None:
                nn.utils.clip_grad_norm_(network.parameters(), variant.optimizer.clip_norm)
            optimizer.step()
    for t, (network, optimizer) in enumerate(zip(networks, optimizers, strict=True)):
        for key, tensor in network.state_dict().items():
            assert (stack.state_dict()[key].chunk(3)[t] - tensor).abs().max() < 1e-12, (t, key)
        states = stepper.state_of(slice(t, t + 1))
        for index, entries in optimizer.state_dict()["state"].items():
            for entry, value in entries.items():
                if isinstance(value, Tensor):
                    torch.testing.assert_close(states[f"optimizer.{index}.{entry}"], value, rtol=0, atol=1e-12)


def test_gradient_norms_are_those_of_each_network(make_study: Any) -> None:
    stack = build_trials(make_study(), ARM, [0, 1]).double()
    images = torch.randn(6, 2, 8, 8, dtype=torch.float64)
    stack(images).square().sum((0, 2)).mul(torch.tensor([1.0, 3.0])).sum().backward()
    expected = [
        torch.cat([p.grad.chunk(2)[t].flatten() for p in stack.parameters() if p.grad is not None]).norm()
        for t in (0, 1)
    ]
    torch.testing.assert_close(gradient_norms(stack.parameters(), 2), torch.stack(expected), rtol=1e-13, atol=0)


def test_spared_parameters_do_not_decay_and_all_others_do(make_study: Any) -> None:
    stack = build_trials(make_study(), ARM, [0, 1])
    settings = Optimizer(name="sgd", learning_rate=0.1, weight_decay=0.5, decay_all=False)
    before = {name: tensor.clone() for name, tensor in stack.named_parameters()}
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.add_(1)
            parameter.grad = torch.zeros_like(parameter)
    make_optimizer(stack, settings).step()
    for name, parameter in stack.named_parameters():
        is_spared = ".bn" in name or name.endswith("bias")
        factor = 1 if is_spared else 1 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), (before[name] + 1) * factor)


# Schedules


def _torch_rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _optimizer(rate: float = 0.3) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=rate)


def test_the_cosine_is_torchs() -> None:
    optimizer = _optimizer()
    expected = _torch_rates(torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=50), optimizer, 50)
    rates = [learning_rate(Schedule(name="cosine"), 0.3, step, Calendar(5, 1), 10) for step in range(50)]
    assert rates == pytest.approx(expected, abs=1e-15)


def test_the_cosine_with_an_end_and_warm_up_is_torchs() -> None:
    """Linear from 1/20 of the rate over 20 steps, then a cosine to a tenth over the other 30."""
    optimizer = _optimizer()
    warm = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 20, total_iters=19)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=30, eta_min=0.03)
    both = torch.optim.lr_scheduler.SequentialLR(optimizer, [warm, cosine], milestones=[20])
    expected = _torch_rates(both, optimizer, 50)
    schedule = Schedule(name="cosine", warmup_epochs=4.0, final=0.1)
    rates = [learning_rate(schedule, 0.3, step, Calendar(5, 1), 10) for step in range(50)]
    assert rates == pytest.approx(expected, abs=1e-15)


def test_the_steps_are_torchs() -> None:
    optimizer = _optimizer()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[15, 40], gamma=0.2)
    expected = _torch_rates(scheduler, optimizer, 50)
    schedule = Schedule(name="step", milestones=(3, 8), factor=0.2)
    assert [learning_rate(schedule, 0.3, step, Calendar(5, 1), 10) for step in range(50)] == pytest.approx(
        expected, abs=1e-15
    )


@pytest.mark.parametrize(("step", "share"), [(0, 1), (511, 1), (512, 2**-0.5), (1535, 3**-0.5), (500_000, 977**-0.5)])
def test_the_inverse_square_root_is_that_of_the_paper(step: int, share: float) -> None:
    """Nakkiran et al. 2019, appendix B: 0.1 / sqrt(1 + floor(t / 512)); 500,000 / 512 = 976.6."""
    rate = learning_rate(Schedule(name="inverse_sqrt"), 0.1, step, Calendar(10, 1), 10**6)
    assert rate == pytest.approx(0.1 * share, rel=1e-14)


@given(
    name=st.sampled_from(["constant", "cosine", "step", "inverse_sqrt"]),
    warmup=st.floats(0, 9),
    steps_per_epoch=st.integers(1, 20),
)
def test_no_rate_leaves_the_interval_from_zero_to_the_base(name: Any, warmup: float, steps_per_epoch: int) -> None:
    schedule = Schedule(name=name, warmup_epochs=warmup, milestones=(5,) if name == "step" else ())
    rates = [
        learning_rate(schedule, 0.3, step, Calendar(steps_per_epoch, 1), 10) for step in range(10 * steps_per_epoch)
    ]
    assert all(0 < rate <= 0.3 * (1 + 1e-12) for rate in rates)
