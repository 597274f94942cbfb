"""The monitor of noise, in the losses and in the gradient: against scipy, numpy and the campaign's recursion."""

import math
from typing import Any

import numpy as np
import pytest
import scipy.signal
import scipy.stats
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dd_core.data.randomness import generator
from dd_core.study.monitors import (
    NoiseMonitor,
)
from dd_core.training.monitors import noise
from dd_core.training.monitors.noise import Noise
from dd_core.training.trial_stack import TrialStack

from .monitored import (
    MakeStudy,
    feed,
    make_stack,
    moment,
    options,
    plain_network,
    some_losses,
    training_set,
    values_and_errors,
)

# --- noise of the losses


def make_noise(stack: TrialStack, **changes: Any) -> Noise:
    return Noise(stack, **{**options(NoiseMonitor()), "num_batches": 3, **changes})


def reference(losses: np.ndarray, first_step: int, kind: str) -> tuple[float, float]:
    """psd_tail and resid_power of (n,) losses, by NumPy and SciPy."""
    x, y = np.log(first_step + np.arange(len(losses)) + 1.0), np.log(losses)
    line = scipy.stats.linregress(x, y)
    residuals = y - line.intercept - line.slope * x
    if kind == "density":
        f, p = scipy.signal.periodogram(residuals, window="hann", detrend=False, scaling="density")
        tail, low = (f >= 15 / 32) & (f < 0.5), (f >= 1 / 64) & (f < 1 / 16)
        return p[tail].mean(), p[low].mean() * (1 / 16 - 1 / 64)
    power = np.abs(np.fft.rfft(residuals)) ** 2
    if kind == "periodogram":
        return np.mean(power[-16:]), np.sum(power[8:32])
    f, p = scipy.signal.periodogram(losses, window="hann", detrend="constant", scaling="spectrum")
    p[1:] /= 2  # one-sided, and in other units
    p[-1] *= 2 if len(losses) % 2 == 0 else 1
    p *= np.square(scipy.signal.get_window("hann", len(losses)).sum())
    return p[f >= 0.3].sum() / (p[(f >= 0.1) & (f < 0.3)].sum() + 1e-10), np.sum(power[8:32])


@pytest.mark.parametrize("kind", ["density", "periodogram", "ratio"])
@pytest.mark.parametrize(("num", "window"), [(100, 512), (128, 128), (331, 200), (600, 512), (517, 600)])
def test_spectra_are_those_of_scipy(make_study: MakeStudy, kind: str, num: int, window: int) -> None:
    stack = make_stack(make_study, steps=0)
    losses = some_losses(num)
    monitor = make_noise(stack, psd=kind, window=window)
    got = monitor.measure(feed(monitor, torch.from_numpy(losses)))
    last = losses[-window:]
    for position in range(2):
        tail, power = reference(last[:, position], num - len(last) + 1, kind)
        assert float(got["psd_tail"][position]) == pytest.approx(tail, rel=1e-9)
        assert float(got["resid_power"][position]) == pytest.approx(power, rel=1e-9)


@pytest.mark.parametrize("num", [100, 101, 255, 512])
def test_the_density_of_white_noise_is_twice_its_variance_whatever_the_window(num: int) -> None:
    """Which |rfft|^2 is not. 5,000 series, so that the mean is known to a percent."""
    rng = np.random.default_rng(num)
    series = 0.2 * rng.normal(size=(num, 5000))
    trend = (np.arange(num) + 900.0)[:, None] ** -1.7
    tail, power = noise.density(torch.from_numpy(np.exp(series) * trend), 899)
    assert tail.mean().item() == pytest.approx(2 * 0.04, rel=0.03)
    assert power.mean().item() == pytest.approx(2 * 0.04 * (1 / 16 - 1 / 64), rel=0.03)


def test_at_512_losses_the_bands_are_the_bins_of_the_campaign() -> None:
    bins = torch.arange(257.0)
    assert noise._band(bins, 512, 1 / 64, 1 / 16).tolist() == list(range(8, 32))
    assert noise._band(bins, 512, 15 / 32, 1 / 2).tolist() == list(range(240, 256))


def test_a_loss_that_is_not_finite_makes_nan_for_its_own_trial(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0)
    losses = torch.from_numpy(some_losses(150))
    losses[120, 0] = torch.inf
    monitor = make_noise(stack)
    got = monitor.measure(feed(monitor, losses))
    assert got["psd_tail"][0].isnan()
    assert got["resid_power"].isfinite().tolist() == [False, True]


def test_a_loss_of_zero_counts_as_the_smallest_that_float32_can_tell(make_study: MakeStudy) -> None:
    """A wide network that knows its labels by heart has such batches, and noise all the same."""
    stack = make_stack(make_study, steps=0)
    losses = torch.from_numpy(some_losses(150))
    measured = []
    for smallest in (0.0, 2.0**-31):
        losses[120:, 0] = smallest
        monitor = make_noise(stack)
        measured.append(monitor.measure(feed(monitor, losses)))
    for metric in ("psd_tail", "resid_power"):
        assert measured[0][metric].isfinite().all()
        assert torch.equal(measured[0][metric], measured[1][metric])


def test_there_is_no_spectrum_of_fewer_than_a_hundred_losses(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0)
    monitor = make_noise(stack)
    assert set(monitor.measure(feed(monitor, torch.from_numpy(some_losses(99))))) == {"grad_var"}
    now = feed(monitor, torch.from_numpy(some_losses(1)), first_step=100)
    assert set(monitor.measure(now)) == set(Noise.metrics)


@pytest.mark.parametrize("grad_var", ["batches", "ema"])
@pytest.mark.parametrize("before", [0, 57, 128, 300])
def test_an_interrupted_noise_monitor_goes_on_with_the_same_bits(
    make_study: MakeStudy, grad_var: str, before: int
) -> None:
    stack = make_stack(make_study, dtype=torch.float32)
    whole, first, second = (make_noise(stack, window=128, grad_var=grad_var) for _ in range(3))
    losses = torch.from_numpy(some_losses(420)).float()
    if before:
        feed(whole, losses[:before])
        feed(first, losses[:before])
    state = {name: tensor.clone() for name, tensor in first.state().items()}
    feed(first, losses[:3])  # a state is not a view of what goes on
    second.load_state(state)
    assert all(torch.equal(tensor, state[name]) for name, tensor in second.state().items())
    stack.run_steps(1)
    results = [monitor.measure(feed(monitor, losses[before:], before + 1)) for monitor in (whole, second)]
    for name, (value, error) in values_and_errors(results[0]).items():
        assert torch.equal(value, values_and_errors(results[1])[name][0])
        assert torch.equal(error, values_and_errors(results[1])[name][1])


def test_another_window_after_an_interruption_takes_the_last_losses(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0)
    losses = torch.from_numpy(some_losses(700))
    long = make_noise(stack, window=600)
    feed(long, losses[:650])
    for window in (200, 900):
        other = make_noise(stack, window=window)
        other.load_state(long.state())
        got = other.measure(feed(other, losses[650:], 651))
        start = max(50, 700 - window)
        expected = noise.density(losses[start:], start + 1)
        torch.testing.assert_close(got["psd_tail"], expected[0], rtol=1e-12, atol=0)


# --- variance of the gradient


def image_gradients(stack: TrialStack, position: int) -> np.ndarray:
    """The gradient of every training image, float64 (N, P)."""
    model = plain_network(stack, position)
    rows = []
    for image, label in zip(*training_set(stack, position, stack.num_train), strict=True):
        loss = cross_entropy(model(image[None]), label[None])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy())
    return np.stack(rows)


@pytest.mark.parametrize(("num_batches", "size"), [(3, 32), (2, 32), (8, 12), (200, 1)])
def test_the_variance_between_batches_is_numpys(make_study: MakeStudy, num_batches: int, size: int) -> None:
    """100 images hold three batches of 32; more batches are smaller, and scaled to 32."""
    stack = make_stack(make_study)
    got = make_noise(stack, num_batches=num_batches).measure(moment(stack, step=12))["grad_var"]
    assert isinstance(got, tuple)
    number = min(num_batches, 100)
    for position, trial in enumerate(stack.trials):
        order = generator(stack.study.seed, trial, "monitor_images", 12).permutation(100)
        gradients = image_gradients(stack, position)[order[: number * size]]
        means = gradients.reshape(number, size, -1).mean(1)
        assert float(got[0][position]) == pytest.approx(means.var(0, ddof=1).mean() * size / 32, rel=1e-9)
        assert float(got[1][position]) > 0 or number == 2


def test_the_variance_between_batches_is_unbiased_and_its_error_true(make_study: MakeStudy) -> None:
    """Over 120 steps, whose batches are independent, against the covariance of all images' gradients."""
    stack = make_stack(make_study, trials=(0,), batch_size=10)
    monitor = make_noise(stack, num_batches=6)
    runs = [monitor.measure(moment(stack, step))["grad_var"] for step in range(1, 121)]
    values, errors = (np.array([float(run[i]) for run in runs]) for i in range(2))
    truth = image_gradients(stack, 0).var(0, ddof=1).mean() / 10
    assert abs(values.mean() - truth) < 4 * values.std(ddof=1) / math.sqrt(120)
    assert np.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.3)


def test_the_moving_variance_is_the_campaigns_recursion(make_study: MakeStudy) -> None:
    stack = make_stack(make_study, steps=0)
    monitor = make_noise(stack, grad_var="ema", decay=0.3)
    assert torch.as_tensor(monitor.measure(moment(stack))["grad_var"]).isnan().all()
    rng = np.random.default_rng(0)
    mean = variance = None
    for step in range(1, 8):
        by_parameter = [torch.from_numpy(rng.normal(size=p.shape)) for p in stack.model.parameters()]
        for parameter, gradient in zip(stack.model.parameters(), by_parameter, strict=True):
            parameter.grad = gradient
        monitor.observe(moment(stack, step))
        rows = np.concatenate([g.reshape(2, -1).numpy() for g in by_parameter], axis=1)
        if mean is None:
            mean, variance = rows.copy(), np.zeros_like(rows)
        else:
            delta = rows - mean
            mean += 0.3 * delta
            variance = (1 - 0.3) * (variance + 0.3 * delta**2)
        got = monitor.measure(moment(stack, step))["grad_var"]
        np.testing.assert_allclose(got, variance.mean(1), rtol=1e-12)


def test_the_moving_variance_leaves_an_overflowing_gradient_out(make_study: MakeStudy) -> None:
    stack = make_stack(make_study)
    finite, first, later = (make_noise(stack, grad_var="ema") for _ in range(3))
    parameter = next(iter(stack.model.parameters()))
    overflown = parameter.grad.clone()
    overflown[: len(overflown) // 2] = torch.inf  # of trial 0

    def observe(monitor: Noise, gradient: Tensor, factor: float = 1.0) -> None:
        before, parameter.grad = parameter.grad, gradient * factor
        monitor.observe(moment(stack))
        parameter.grad = before

    sound = parameter.grad
    for monitor, overflows_at in ((finite, None), (first, 0), (later, 1)):
        for index, factor in enumerate((1.0, 2.0, 3.0)):
            if index == overflows_at:
                observe(monitor, overflown)
            observe(monitor, sound, factor)
    values = [torch.as_tensor(monitor.measure(moment(stack))["grad_var"]) for monitor in (finite, first, later)]
    assert values[0][0] > 0
    assert values[0][0] == values[1][0] == values[2][0]
