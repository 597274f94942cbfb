"""How the loss curves of a study are analysed: windows, criteria and options of ``dd_core.analysis.loss_slopes``.

None of this changes a weight, so none of it is part of a recipe. Where the sources of the loss-slope campaign conflict,
both readings are options here; the default is the sound one.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dd_core.study.yaml_files import Strict


def _is_window(window: tuple[float, float]) -> tuple[float, float]:
    if window[0] >= window[1]:
        raise ValueError(f"a window ends after it begins, not {list(window)}")
    return window


Epoch = Annotated[float, Field(ge=0)]
Window = Annotated[tuple[Epoch, Epoch], AfterValidator(_is_window)]
Share = Annotated[float, Field(gt=0, lt=1)]


class LossSlopeSettings(Strict):
    """Settings of the tables ``loss_slopes`` and ``loss_slope_fits``; epochs count from the beginning of training."""

    early: Window = Field(default=(5.0, 15.0), description="epochs of the early slope, alpha_early")
    starts: tuple[Epoch, ...] = Field(
        default=(3.0, 5.0, 7.0), min_length=2, description="first epochs of the early window, for its stability"
    )
    scan_starts: tuple[Epoch, ...] = Field(
        default=(1.0, 2.0, 3.0, 5.0, 7.0, 10.0),
        min_length=1,
        description="first epochs of the windows that are compared",
    )
    scan_stops: tuple[Epoch, ...] = Field(
        default=(10.0, 15.0, 20.0, 30.0, 40.0, 50.0), min_length=1, description="their last epochs"
    )
    burn_in_loss: float = Field(default=1.0, gt=0, description="nats; burn-in by loss ends where it is at most this")
    largest_loss: float = Field(default=5.0, gt=0, description="nats; steps above are left out of fits, and counted")
    points: Literal["log_spaced", "all"] = Field(
        default="log_spaced",
        description="log_spaced: means over bins of equal width in log time, so that late steps do not outvote early "
        "ones; all: every step",
    )
    num_points: int = Field(default=200, ge=20, le=5000, description="log_spaced only, bins at most")
    weights: Literal["variance", "equal"] = Field(
        default="variance",
        description="log_spaced only; variance: bins count by how little their means fluctuate, as the residuals tell; "
        "equal: each bin counts as much, and criteria find breaks where bins hold few steps",
    )
    standard_error: Literal["newey_west", "block_bootstrap", "independent"] = Field(
        default="newey_west",
        description="of slopes: newey_west (Newey & West 1987) and block_bootstrap (Kunsch 1989) account for the "
        "autocorrelation of steps; independent is the campaign's",
    )
    knee: Literal["aic", "loss", "break"] = Field(
        default="break",
        description="which burn-in starts alpha_full and the straight segment: break (two-segment fit), aic (first "
        "epoch with AIC(power) <= AIC(exponential) - 2, the campaign's), loss (first epoch at burn_in_loss)",
    )
    smooth_break: bool = Field(default=False, description="also fit two power laws that pass smoothly into each other")
    plateau: Literal["relative_change", "pelt"] = Field(
        default="relative_change",
        description="of the largest eigenvalue: change below 5 % for three epochs, or the last change point of PELT",
    )
    straight_r_squared: Share = Field(default=0.98, description="H1: a run is straight from this R^2 on")
    straight_shares: tuple[Share, ...] = Field(
        default=(0.8, 0.9), min_length=1, description="H1: shares of straight runs that the sources ask for"
    )
    strong_correlation: Share = Field(default=0.7, description="H2: |rho| from which on it is strong")
    weak_correlation: Share = Field(
        default=0.4, description="H2: |rho| below which the campaign turns to the largest eigenvalue"
    )
    significance: Share = Field(default=0.01, description="H2: largest p value")
    bootstrap_samples: int = Field(default=2000, ge=100, le=100_000, description="behind intervals of correlations")
