"""Noise while training: the spectrum of the batch losses' fluctuations, and the variance of the batch gradient."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from dd_core.study.monitors import NoiseMonitor
from dd_core.training.monitors.base import Measurement, Moment, Monitor, Watched
from dd_core.training.monitors.gradient_variance import BatchVariance, MovingVariance

_RESOLUTION = 2.0**-31  # nats


class Noise(Monitor):
    """``psd_tail``, ``resid_power`` and ``grad_var``.

    The first two say how the last ``window`` batch losses fluctuate, slowly and from step to step; both are there from
    step 100 on. r is what is left of log loss(s) after its straight line in log(s + 1) has been taken away (least
    squares; s counts the steps from 1): a power law leaves the noise alone. What ``psd`` says of them:

    - ``density``: the one-sided power spectral density of r, in 1 / (cycles per step), from a Hann window. Its
      expectation does not depend on the window's length; white noise of variance v has the density 2 v. ``psd_tail`` is
      its mean between 15/32 and 1/2 cycle per step, ``resid_power`` its integral from 1/64 to 1/16, that is the
      variance of r there: at 512 losses the bins of ``periodogram``, but for the last, which has no mirror image.
    - ``periodogram``: as in the loss-slope campaign, P = |rfft(r)|^2 with ``psd_tail`` = mean(P[-16:]) and
      ``resid_power`` = sum(P[8:32]), which grow with the number of losses, and by leakage from slower changes.
    - ``ratio``: ``resid_power`` as in ``periodogram``; ``psd_tail`` is the power from 0.3 cycles per step on over that
      from 0.1 to 0.3, of the losses themselves, without their mean and in a Hann window (the campaign's third plan).

    A loss below 2^-31 nats, such as 0, counts as that: the mean of 128 losses in float32 knows nothing smaller. NaN
    where a loss of the window is infinite or NaN. ``grad_var`` is there from the first interval on, see
    ``dd_core.training.monitors.gradient_variance``.
    """

    metrics = tuple(NoiseMonitor.first_steps)
    watches_every_step = True
    trials_in: ClassVar[dict[str, int]] = {"losses": 1}

    def __init__(
        self,
        stack: Watched,
        window: int,
        psd: Literal["density", "periodogram", "ratio"],
        grad_var: Literal["batches", "ema"],
        num_batches: int,
        decay: float,
    ):
        """Options are those of ``NoiseMonitor``."""
        super().__init__(stack)
        self._spectrum = {"density": density, "periodogram": periodogram, "ratio": ratio}[psd]
        self._variance = BatchVariance(stack, num_batches) if grad_var == "batches" else MovingVariance(stack, decay)
        self._window, self._num_seen = window, 0
        self._losses: Tensor | None = None  # (window, T); loss number n, from 0, lies at n modulo window

    def observe(self, moment: Moment) -> None:
        """Keep the loss."""
        if self._losses is None:
            self._losses = moment.loss.new_empty(self._window, len(moment.loss))
        self._losses[self._num_seen % self._window] = moment.loss
        self._num_seen += 1
        self._variance.observe()

    def measure(self, moment: Moment) -> Measurement:
        """(T,) float64; only ``grad_var`` while there are fewer than 100 losses."""
        measured: Measurement = {"grad_var": self._variance.measure(moment.step)}
        if self._num_seen >= NoiseMonitor.first_steps["psd_tail"]:
            losses = self._in_order().double()
            measured["psd_tail"], measured["resid_power"] = self._spectrum(losses, moment.step - len(losses) + 1)
        return measured

    def _in_order(self) -> Tensor:
        """The losses there are, oldest first."""
        assert self._losses is not None
        if self._num_seen < self._window:
            return self._losses[: self._num_seen]
        return self._losses.roll(-(self._num_seen % self._window), 0)

    def state(self) -> dict[str, Tensor]:
        """The losses, oldest first, and what the variance keeps."""
        return ({"losses": self._in_order()} if self._num_seen else {}) | self._variance.state()

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """The reverse of ``state``; of losses kept with a longer window, the last."""
        self._losses, self._num_seen = None, 0
        if "losses" in tensors:
            losses = tensors["losses"][-self._window :].to(self.stack.device)
            self._losses = losses.new_empty(self._window, losses.shape[1])
            self._losses[: len(losses)] = losses
            self._num_seen = len(losses)
        self._variance.load_state(tensors)


def density(losses: Tensor, first_step: int) -> tuple[Tensor, Tensor]:
    """``psd_tail`` and ``resid_power``, (T,), of float64 losses (n, T) from ``first_step`` on."""
    num = len(losses)
    window = torch.hann_window(num, dtype=losses.dtype, device=losses.device)
    r = residuals(losses, first_step)
    # Bins 0 and n / 2 have no mirror image to count twice, and are in neither band.
    psd = 2 * _power(r * window[:, None]) / window.square().sum()
    return _band(psd, num, 15 / 32, 1 / 2).mean(0), _band(psd, num, 1 / 64, 1 / 16).mean(0) * (1 / 16 - 1 / 64)


def periodogram(losses: Tensor, first_step: int) -> tuple[Tensor, Tensor]:
    """The same by the definition of the loss-slope campaign."""
    power = _power(residuals(losses, first_step))
    return power[-16:].mean(0), power[8:32].sum(0)


def ratio(losses: Tensor, first_step: int) -> tuple[Tensor, Tensor]:
    """The same with the third plan's ratio."""
    num = len(losses)
    window = torch.hann_window(num, dtype=losses.dtype, device=losses.device)
    power = _power((losses - losses.mean(0)) * window[:, None])
    tenth, three_tenths = -(-num // 10), -(-3 * num // 10)  # the first bins not below, in whole numbers
    high, low = power[three_tenths:].sum(0), power[tenth:three_tenths].sum(0)
    return high / (low + 1e-10), periodogram(losses, first_step)[1]


def residuals(losses: Tensor, first_step: int) -> Tensor:
    """Log loss(s) without its least-squares line in log(s + 1), (n, T)."""
    steps = torch.arange(first_step, first_step + len(losses), dtype=losses.dtype, device=losses.device)
    x, y = (steps + 1).log(), losses.clamp(min=_RESOLUTION).log()
    x, y = x - x.mean(), y - y.mean(0)
    return y - x[:, None] * ((x @ y) / (x @ x))


def _power(series: Tensor) -> Tensor:
    """|rfft|^2 of (n, T): (n // 2 + 1, T), bin j at j / n cycles per step."""
    return torch.fft.rfft(series, dim=0).abs().square()


def _band(spectrum: Tensor, num: int, low: float, high: float) -> Tensor:
    """The bins from ``low`` to below ``high`` cycles per step, without bin 0."""
    return spectrum[max(1, math.ceil(low * num)) : math.ceil(high * num)]
