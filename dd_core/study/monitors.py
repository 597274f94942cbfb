"""What is measured while a study trains, and how often: typed, validated, without torch.

Batches (loss, accuracy, learning rate) and evaluations are always recorded; monitors are what comes on top, one row per
trial, step and metric in the table ``training_monitors``.
"""

import re
from fractions import Fraction
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, model_validator

from dd_core.study.calendar import Calendar
from dd_core.study.former_names import metric_now
from dd_core.study.own_code import is_own_code
from dd_core.study.yaml_files import Strict

_INTERVAL = re.compile(r"([0-9]+|[0-9]+\.[0-9]+|[0-9]+/0*[1-9][0-9]*) (steps?|epochs?)")
_METRIC_NAME = re.compile(r"[a-z][a-z0-9_]*")


def _is_interval(text: str) -> str:
    match = _INTERVAL.fullmatch(text)
    if match is None or Fraction(match[1]) <= 0:
        raise ValueError(
            f"an interval is a positive number of steps or epochs, such as '500 steps' or '1/4 epoch', not {text!r}"
        )
    if match[2].startswith("step") and Fraction(match[1]).denominator != 1:
        raise ValueError(f"an interval in steps is a whole number, not {match[1]}")
    return text


def names_a_class(text: str) -> str:
    """A class that Python can import.

    Raises:
        ValueError: it has another form.
    """
    if not is_own_code(text):
        raise ValueError(f"name the class as package.module:Class, not {text!r}")
    return text


Interval = Annotated[
    str,
    AfterValidator(_is_interval),
    Field(description="how often it measures, in steps or epochs: 500 steps, 1/4 epoch"),
]


def due_steps(interval: str, calendar: Calendar, num_steps: int) -> list[int]:
    """The steps, counted from 1, after which something with that interval is measured, up to ``num_steps``.

    A quarter of an epoch of 10 steps is 2.5 steps: after steps 3, 5, 8, 10. Never more often than every step.
    """
    steps = []
    step = next_due(interval, calendar, 0)
    while step <= num_steps:
        steps.append(step)
        step = next_due(interval, calendar, step)
    return steps


def next_due(interval: str, calendar: Calendar, step: int) -> int:
    """The first step after ``step`` in which a multiple of the interval comes."""
    number, unit = interval.split()
    if unit.startswith("step"):
        return (step // int(number) + 1) * int(number)
    period = Fraction(number)
    return calendar.step_at((calendar.time_of(step) // period + 1) * period)


class MonitorEntry(Strict):
    """What all monitors have.

    Attributes:
        first_steps: its metrics under the names of training (dd_core.study.former_names), and of each the first step
            after which there is something to measure; empty where only the class behind it knows.
    """

    first_steps: ClassVar[dict[str, int]] = {}

    every: Interval


class ValidationMonitor(MonitorEntry):
    """``validation_loss`` and ``validation_error``: all validation images, BatchNorm in eval mode.

    They need data.num_validation.
    """

    first_steps: ClassVar[dict[str, int]] = {"loss_val_nats": 1, "acc_val": 1}

    every: Interval = "1/4 epoch"


class NormMonitor(MonitorEntry):
    """``gradient_norm``: of the batch's gradient before clipping; ``weight_norm``: of all parameters after the step."""

    first_steps: ClassVar[dict[str, int]] = {"grad_norm": 1, "weight_norm": 1}

    every: Interval = "1/4 epoch"


class HessianMonitor(MonitorEntry):
    """``largest_eigenvalue`` (and its residual) and ``hessian_trace`` in the weights, on a fixed batch."""

    first_steps: ClassVar[dict[str, int]] = {"lambda_max": 1, "lambda_max_residual": 1, "hutch_trace": 1}

    every: Interval = "500 steps"
    num_images: int = Field(
        default=128,
        ge=1,
        description="the first training images of each trial with their given labels, not augmented, BatchNorm in eval "
        "mode; all there are, if they are fewer",
    )
    lambda_max: Literal["lanczos", "power_iteration"] = Field(
        default="lanczos",
        description="lanczos: largest Ritz value, fully reorthogonalised; power_iteration: the Rayleigh quotient after "
        "that many products, which tends to the eigenvalue of largest modulus, as in the loss-slope campaign (with 5)",
    )
    iterations: int = Field(default=10, ge=2, le=200, description="Hessian-vector products for lambda_max")
    hutch_trace: Literal["hutchinson", "hutch_plus_plus"] = Field(
        default="hutchinson",
        description="both unbiased, Rademacher probes; hutch_plus_plus is exact where a few large eigenvalues make the "
        "trace, and pays with more probes than the default (the campaign: 30 or more)",
    )
    num_probes: int = Field(
        default=6, ge=2, le=1000, description="Hessian-vector products for hutch_trace; hutch_plus_plus needs 6"
    )

    @model_validator(mode="after")
    def _probes_suffice(self) -> "HessianMonitor":
        if self.hutch_trace == "hutch_plus_plus" and self.num_probes < 6:
            raise ValueError(
                f"num_probes: hutch_plus_plus needs at least 6, two for each of its parts, not {self.num_probes}"
            )
        return self


class NoiseMonitor(MonitorEntry):
    """``spectral_density_tail`` and ``residual_power`` of batch losses, from step 100 on; ``gradient_variance``."""

    first_steps: ClassVar[dict[str, int]] = {"grad_var": 1, "psd_tail": 100, "resid_power": 100}

    every: Interval = "2 epochs"
    window: int = Field(default=512, ge=128, le=65536, description="batch losses looked at, the last so many")
    psd: Literal["density", "periodogram", "ratio"] = Field(
        default="density",
        description="density: power spectral density of log loss about its power law, Hann window, bands in cycles per "
        "step; periodogram: the loss-slope campaign's sums of squared Fourier coefficients; ratio: its third plan's",
    )
    grad_var: Literal["batches", "ema"] = Field(
        default="batches",
        description="batches: variance between the gradients of batches drawn for it, at the weights of the moment; "
        "ema: moving variance of the training steps' gradients, as in the campaign",
    )
    num_batches: int = Field(
        default=8, ge=2, le=1000, description="grad_var: batches only; as many gradients to compute"
    )
    decay: float = Field(default=0.1, gt=0, lt=1, description="grad_var: ema only, weight of the newest gradient")


class PlasticityMonitor(MonitorEntry):
    """``dormant_units``, ``effective_rank`` and ``stable_rank`` of the features on training images; eval mode."""

    first_steps: ClassVar[dict[str, int]] = {"dormant_units": 1, "effective_rank": 1, "stable_rank": 1}

    every: Interval = "1 epoch"
    num_images: int = Field(default=1000, ge=2, description="of those that were seen, drawn once; all, if fewer")
    threshold: float = Field(
        default=0.01, ge=0, lt=1, description="a unit is dormant that is not zero on a smaller share of the images"
    )


class CustomMonitor(MonitorEntry):
    """A monitor of the user's own: a class that Python can import where the workers run.

    Importing runs the module, so a study file is trusted code: its author may do what its workers may.
    """

    use: Annotated[str, AfterValidator(names_a_class)] = Field(description="the class, as package.module:Class")
    options: dict[str, Any] = Field(default={}, description="keyword arguments of the class")


class MonitorSettings(Strict):
    """Null turns a monitor off."""

    validation: ValidationMonitor | None = ValidationMonitor()
    norms: NormMonitor | None = NormMonitor()
    hessian: HessianMonitor | None = HessianMonitor()
    noise: NoiseMonitor | None = NoiseMonitor()
    plasticity: PlasticityMonitor | None = None
    custom: dict[str, CustomMonitor] = Field(default={})

    @model_validator(mode="after")
    def _names_are_names(self) -> "MonitorSettings":
        for name in self.custom:
            if not _METRIC_NAME.fullmatch(name):
                raise ValueError(f"custom.{name}: a name is lower-case letters, digits and underscores")
            if name in type(self).model_fields:
                raise ValueError(f"custom.{name}: there is a monitor of that name already; choose another")
        return self

    def active(self, has_validation: bool) -> dict[str, MonitorEntry]:
        """The monitors that measure, by name, in a fixed order; ``validation`` needs validation images."""
        own: dict[str, MonitorEntry | None] = {
            "validation": self.validation if has_validation else None,
            "norms": self.norms,
            "hessian": self.hessian,
            "noise": self.noise,
            "plasticity": self.plasticity,
        }
        return {name: settings for name, settings in own.items() if settings is not None} | dict(self.custom)


def expected_steps(
    settings: MonitorSettings, has_validation: bool, calendar: Calendar, num_steps: int
) -> dict[str, list[int]]:
    """By metric the steps after which a trial that trains for ``num_steps`` has a value in ``training_monitors``.

    Of the monitors that belong to the platform. What a monitor of the user's own measures, and when first, only its
    class knows.
    """
    expected = {}
    for entry in settings.active(has_validation).values():
        due = due_steps(entry.every, calendar, num_steps)
        for metric, first in entry.first_steps.items():
            expected[metric_now(metric).name] = [step for step in due if step >= first]
    return expected
