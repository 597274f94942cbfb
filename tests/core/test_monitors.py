"""Monitors: every number against an independent reference, no trace in the training, no waiting for the device."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from dd_core.curvature.parameter_space.by_trial import by_trial
from dd_core.errors import UserError
from dd_core.study.calendar import Calendar
from dd_core.study.former_names import now
from dd_core.study.monitors import (
    HessianMonitor,
    NoiseMonitor,
    NormMonitor,
    ValidationMonitor,
    expected_steps,
)
from dd_core.training.monitors import Measurement, Moment, Monitor, Timetable
from dd_core.training.monitors.hessian import Hessian
from dd_core.training.monitors.noise import Noise
from dd_core.training.monitors.norms import Norms
from dd_core.training.monitors.validation import Validation
from dd_core.training.trial_stack import TrialStack

from .monitored import (
    BUSY,
    OFF,
    MakeStudy,
    all_monitors,
    feed,
    make_stack,
    moment,
    plain_images,
    plain_network,
    some_losses,
    values_and_errors,
)

# --- validation and norms


def test_validation_is_the_mean_over_all_validation_images(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    stack._eval_size = 30  # batches of 30, 30 and 10
    got = Validation(stack).measure(moment(stack))
    for position, data in enumerate(stack.data):
        labels = torch.from_numpy(data.validation_labels)
        logits = plain_network(stack, position)(plain_images(data, data.validation_ids))
        assert len(labels) == 70
        assert got["loss_val_nats"][position].item() == pytest.approx(cross_entropy(logits, labels).item(), rel=1e-9)
        assert got["acc_val"][position].item() == pytest.approx((logits.argmax(1) == labels).double().mean().item())


def test_weight_norm_is_that_of_all_parameters_and_follows_them(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, architecture="cnn5")
    norms = Norms(stack)
    for _ in range(2):
        got = norms.measure(moment(stack))["weight_norm"]
        for position in range(2):
            weights = torch.cat([p.flatten() for p in plain_network(stack, position).parameters()])
            assert got[position].item() == pytest.approx(weights.norm().item(), rel=1e-12)
        state = {name: tensor * 1.5 if "model" in name else tensor for name, tensor in stack.state().items()}
        stack.load_state(state)
        stack.run_steps(2)


def test_weight_norm_of_millions_of_float32_weights_is_exact(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, trials=(0,), steps=0)
    stack.model = nn.Linear(2000, 2000)
    with torch.no_grad():
        stack.model.weight.normal_(generator=torch.Generator().manual_seed(0))
    expected = torch.cat([p.detach().double().flatten() for p in stack.model.parameters()]).norm().item()
    now = Moment(1, 1, torch.ones(1), torch.ones(1))
    assert Norms(stack).measure(now)["weight_norm"].item() == pytest.approx(expected, rel=1e-8)


def test_grad_norm_is_that_of_the_moment(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    now = Moment(1, 1, torch.ones(2), torch.tensor([3.0, 4.0]))
    assert Norms(stack).measure(now)["grad_norm"].tolist() == [3.0, 4.0]


# --- all of them


def test_values_do_not_depend_on_which_trials_are_stacked(make_study: MakeStudy) -> None:
    losses = torch.from_numpy(some_losses(120, trials=2))
    both = make_stack(make_study, steps=3)
    together = all_monitors(both)
    feed(together["noise"], losses)
    for position, trial in enumerate((0, 1)):
        alone = make_stack(make_study, trials=(trial,), steps=3)
        separate = all_monitors(alone)
        feed(separate["noise"], losses[:, position : position + 1])
        for name, monitor in separate.items():
            expected = values_and_errors(monitor.measure(moment(alone, 120)))
            got = values_and_errors(together[name].measure(moment(both, 120)))
            assert set(got) == set(monitor.metrics)
            for metric in expected:
                for ours, theirs in zip(got[metric], expected[metric], strict=True):
                    torch.testing.assert_close(ours[position], theirs[0], rtol=1e-8, atol=1e-12)


def test_a_trial_without_finite_weights_leaves_the_others_untouched(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, dtype=torch.float32)
    variations = [{}, {"hessian": {"lambda_max": "power_iteration", "hutch_trace": "hutch_plus_plus"}}]

    def measured() -> list[dict[str, tuple[Tensor, Tensor]]]:
        found = []
        for changes in variations:
            for monitor in all_monitors(stack, **changes).values():
                if monitor.watches_every_step:
                    feed(monitor, torch.from_numpy(some_losses(100)))
                found.append(values_and_errors(monitor.measure(moment(stack, 100))))
        return found

    before = measured()
    stack.diverge(0)
    after = measured()
    for ours, theirs in zip(after, before, strict=True):
        for metric in ours:
            assert torch.equal(ours[metric][0][1], theirs[metric][0][1]), metric
            if metric not in ("acc_val", "grad_norm", "psd_tail", "resid_power"):
                assert ours[metric][0][0].isnan(), metric


class Traces:
    """Everything a monitor could leave a trace in."""

    def __init__(self, stack: TrialStack):  # noqa: D107
        model = stack.model
        self.gradients = [(p.grad, p.grad.clone()) for p in model.parameters() if p.grad is not None]
        self.tensors = {name: tensor.clone() for name, tensor in stack.state().items()}
        self.modes = [module.training for module in model.modules()]
        self.flags = [parameter.requires_grad for parameter in model.parameters()]
        self.random = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        self.grad_mode = torch.is_grad_enabled()

    def assert_equal(self, stack: TrialStack) -> None:  # noqa: D102
        now = Traces(stack)
        assert self.tensors.keys() == now.tensors.keys()
        assert all(torch.equal(tensor, now.tensors[name]) for name, tensor in self.tensors.items())
        assert len(self.gradients) == len(now.gradients) > 0
        for (tensor, value), (same, _) in zip(self.gradients, now.gradients, strict=True):
            assert tensor is same
            assert torch.equal(tensor, value)
        assert self.modes == now.modes
        assert all(self.modes)
        assert self.flags == now.flags
        assert torch.equal(self.random[0], now.random[0])
        assert np.array_equal(self.random[1], now.random[1])
        assert self.random[2] == now.random[2]
        assert self.grad_mode == now.grad_mode


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hessian": {"lambda_max": "power_iteration", "hutch_trace": "hutch_plus_plus"}, "noise": {"grad_var": "ema"}},
        {"noise": {"psd": "periodogram"}},
        {"noise": {"psd": "ratio"}},
    ],
)
def test_a_measurement_leaves_no_trace_and_does_not_wait_for_the_device(make_study: MakeStudy, changes: Any) -> None:
    stack = make_stack(make_study)
    monitors = all_monitors(stack, **changes)
    for monitor in monitors.values():
        before = Traces(stack)
        with NoWaiting():
            feed(monitor, torch.from_numpy(some_losses(100)))
            monitor.measure(moment(stack, 100))
        before.assert_equal(stack)


class NoWaiting(TorchDispatchMode):
    """Refuses what makes the host wait for a GPU: numbers fetched, and sizes or errors that depend on values."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2")
    CHECKED = (
        "_linalg_eigh",
        "_linalg_svd",
        "linalg_cholesky_ex",
        "linalg_solve",
        "linalg_inv_ex",
        "_linalg_check_errors",
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: D105
        name = func.overloadpacket.__name__
        assert name not in (*self.WAITING, *self.CHECKED), f"{name} waits for the device"
        if name in ("index", "index_put", "index_put_"):
            assert not any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]), "a mask waits"
        return func(*args, **(kwargs or {}))


def test_the_watch_for_waiting_sees_it() -> None:
    tensor = torch.arange(3.0)
    for waiting in (
        lambda: tensor.sum().item(),
        lambda: bool(tensor.any()),
        lambda: tensor[tensor > 1],
        lambda: tensor.nonzero(),
        lambda: torch.linalg.eigvalsh(torch.eye(2)),
    ):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            waiting()


@pytest.mark.parametrize("noise_options", [{}, {"grad_var": "ema"}])
def test_training_with_every_monitor_gives_the_same_bits(make_study: MakeStudy, noise_options: dict[str, Any]) -> None:
    busy = {**BUSY, "noise": {**BUSY["noise"], **noise_options}}
    stacks = [make_stack(make_study, steps=0, dtype=torch.float32, monitors=m) for m in (OFF, busy)]
    metrics = [[stack.train_epoch(epoch) for epoch in (1, 2)] for stack in stacks]
    states = [{n: t for n, t in stack.state().items() if not n.startswith("monitors.")} for stack in stacks]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    for bare, observed in zip(*metrics, strict=True):
        np.testing.assert_array_equal(bare.loss, observed.loss)
        assert bare.readings == {}
        assert set(observed.readings) >= {"loss_val_nats", "weight_norm", "lambda_max", "grad_var"}


def test_what_is_recorded_is_what_is_expected(make_study: MakeStudy) -> None:
    """The completeness check computes the steps without torch."""
    monitors = {
        "validation": {"every": "1/4 epoch"},
        "norms": {"every": "3/2 epochs"},
        "hessian": {"every": "37 steps", "num_images": 8, "iterations": 2, "num_probes": 2},
        "noise": {"every": "5 epochs", "num_batches": 2, "window": 128},
    }
    stack = make_stack(make_study, trials=(0,), steps=0, dtype=torch.float32, monitors=monitors, epochs=30)
    recorded: dict[str, list[int]] = {}
    for epoch in range(1, 31):
        for metric, rows in stack.train_epoch(epoch).readings.items():
            assert rows.shape[1] == 4
            assert np.isfinite(rows[:, 2]).all()
            recorded.setdefault(now(metric).name, []).extend(rows[:, 1].astype(int).tolist())
            assert set(rows[:, 0]) == {epoch}
    assert recorded == expected_steps(stack.study.monitors, True, stack.calendar, stack.calendar.steps_after(30))
    assert recorded["spectral_density_tail"] == [100, 120]
    assert len(recorded["gradient_variance"]) == 6


def test_an_interrupted_training_measures_the_same_bits(make_study: MakeStudy) -> None:
    def trained(until: int, monitors: Any = BUSY) -> TrialStack:
        stack = make_stack(make_study, steps=0, dtype=torch.float32, monitors=monitors, epochs=30)
        for epoch in range(1, until + 1):
            stack.train_epoch(epoch)
        return stack

    often = {**OFF, "noise": {"every": "1 steps", "num_batches": 2, "window": 128, "grad_var": "ema"}}
    whole, first = trained(26, often), trained(26, often)
    second = trained(0, often)
    second.load_state({name: tensor.clone() for name, tensor in first.state().items()})
    ours, theirs = second.train_epoch(27).readings, whole.train_epoch(27).readings
    assert ours.keys() == theirs.keys() == set(Noise.metrics)
    for metric, rows in ours.items():
        np.testing.assert_array_equal(rows, theirs[metric])


def test_metrics_are_those_of_the_settings() -> None:
    for monitor, entry in (
        (Validation, ValidationMonitor),
        (Norms, NormMonitor),
        (Hessian, HessianMonitor),
        (Noise, NoiseMonitor),
    ):
        assert set(monitor.metrics) == set(entry.first_steps)


# --- monitors of a user's own


class Largest(Monitor):
    """As a user writes them."""

    metrics = ("largest_weight",)

    def measure(self, moment: Moment) -> Measurement:  # noqa: D102
        weights = by_trial(self.stack.model.parameters(), len(self.stack.trials))
        return {"largest_weight": weights.abs().amax(1)}


class Undeclared(Largest):
    """Forgot to name its metric."""

    metrics = ()


class OfAll(Largest):
    """One value for all trials."""

    def measure(self, moment: Moment) -> Measurement:  # noqa: D102
        return {"largest_weight": super().measure(moment)["largest_weight"].max()}  # type: ignore[union-attr]


class Again(Largest):
    """Measures what another one does."""

    metrics = ("grad_norm",)


def own(use: str, **options: Any) -> dict[str, Any]:
    return {**OFF, "custom": {"own": {"use": use, "every": "1 steps", "options": options}}}


def test_a_monitor_of_the_users_own_is_recorded(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0, monitors=own(f"{__name__}:Largest"))
    rows = stack.train_epoch(1).readings["largest_weight"]
    assert rows[:, 1].tolist() == [1, 2, 3, 4]
    expected = [max(p.abs().max().item() for p in plain_network(stack, t).parameters()) for t in range(2)]
    assert rows[-1, 2:4].tolist() == expected
    assert np.isnan(rows[:, 4:]).all()


@pytest.mark.parametrize(
    ("monitors", "reason"),
    [
        (own("nowhere.to:Find"), "monitors.own: nowhere.to:Find cannot be imported"),
        (own(f"{__name__}:Missing"), "monitors.own: .*Missing"),
        (own(f"{__name__}:TrialStack"), "is not a subclass of .*Monitor"),
        (own(f"{__name__}:Largest", size=3), "cannot be made with these options"),
        (own(f"{__name__}:Undeclared"), "Undeclared measured 'largest_weight', which is not among its metrics"),
        (own(f"{__name__}:OfAll"), r"OfAll measured largest_weight of shape \(\); one value for each of the 2 trials"),
        ({**own(f"{__name__}:Again"), "norms": {}}, "monitors.own: grad_norm is measured by monitors.norms"),
    ],
)
def test_a_monitor_that_cannot_work_is_one_sentence(make_study: MakeStudy, monitors: Any, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        make_stack(make_study, steps=1, monitors=monitors)


def test_a_moment_is_made_only_if_somebody_looks() -> None:
    def never() -> Moment:
        raise AssertionError

    Timetable({}, Calendar(4, 1)).after_step(1, never)


# --- on a GPU


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_on_a_gpu_values_are_the_cpus_and_nothing_waits(make_study: MakeStudy) -> None:
    here = make_stack(make_study)
    arm = next(iter(here.study.arms.values()))
    there = TrialStack(here.study, arm, here.trials, torch.device("cuda"), torch.float64)
    there.run_steps(1)
    there.load_state(here.state())
    losses = torch.from_numpy(some_losses(110))
    pairs = zip(all_monitors(here).values(), all_monitors(there).values(), strict=True)
    for ours, theirs in pairs:
        feed(ours, losses)
        on_gpu = losses.cuda()
        theirs.measure(moment(there, 1))  # libraries set themselves up at the first call
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            feed(theirs, on_gpu)
            got = theirs.measure(moment(there, 110))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        expected = values_and_errors(ours.measure(moment(here, 110)))
        for metric, pair in values_and_errors(got).items():
            if metric != "grad_norm":
                for a, b in zip(pair, expected[metric], strict=True):
                    torch.testing.assert_close(a.cpu(), b, rtol=1e-7, atol=1e-10)
