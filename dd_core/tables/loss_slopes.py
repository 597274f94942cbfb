"""Tables of the loss curves' analysis (``dd_core.analysis.loss_slopes``)."""

from dd_core.tables.columns import ARM, Column, Table

# Raise it when the analysis gives other numbers of the same files, and all of them are analysed again.
LOSS_SLOPE_VERSION = "3"

_SETTINGS = (
    Column("family", "string", "variant of the study file; of a grid the one that it multiplies"),
    Column("architecture", "string", "of the network"),
    Column("norm", "string", "normalisation layers of the network, where it has a choice: batch, group or none"),
    Column("optimizer", "string", "adam, adamw or sgd"),
    Column("learning_rate", "float64", "before the schedule"),
    Column("weight_decay", "float64", "of the optimiser"),
    Column("momentum", "float64", "of sgd"),
    Column("batch_size", "int32", "images of an optimiser step"),
    Column("label_noise", "float64", "share of wrong training labels, fraction"),
)
_SLOPE = "d log loss / d log step; negative where the loss falls"


def _slope(name: str, what: str) -> tuple[Column, ...]:
    return (
        Column(name, "float64", f"{what}, {_SLOPE}"),
        Column(f"{name}_standard_error", "float64", "of it, see standard_error_method"),
        Column(f"{name}_low", "float64", "lower end of its 95 % interval"),
        Column(f"{name}_high", "float64", "upper end of its 95 % interval"),
    )


LOSS_SLOPES = Table(
    "loss_slopes",
    "The loss curve of every run (a trial of an arm): whether and from where it is a power law, and how steep.",
    (
        *ARM,
        *_SETTINGS,
        Column(
            "status",
            "string",
            "of the training: finished, stopped early, diverged, interrupted, failed, running or imported; unknown: "
            "its rows of runs are lost",
        ),
        Column(
            "outcome",
            "string",
            "of the analysis: fitted; diverged; too few points; constant loss; not positive; not finite; steps not "
            "ascending; no losses. Only fitted runs have slopes",
        ),
        Column(
            "reason",
            "string",
            "why there are no fits, what was left out of them, or why alpha_early is null; other values may be null "
            "without a reason, as their own columns say",
        ),
        Column("num_steps", "int64", "batch losses there are"),
        Column(
            "num_left_out",
            "int64",
            "of these, left out of fits: not finite, not positive, above largest_loss, or twice",
        ),
        Column("steps_per_epoch", "float64", "optimiser steps of an epoch"),
        Column("last_epoch", "float64", "time of the last batch loss, epochs"),
        Column(
            "first_fit_epoch", "float64", "where the straight segment begins: the knee that the settings name, epochs"
        ),
        Column("num_points", "int32", "points (steps, or bins of them) of the straight segment"),
        Column(
            "effective_sample_size",
            "float64",
            "independent points that these are worth, by autocorrelation around a smooth curve",
        ),
        Column("standard_error_method", "string", "newey_west, block_bootstrap or independent"),
        Column("estimator", "string", "of the straight segment: ols, or huber where residuals have outliers"),
        Column("r_squared", "float64", "of one straight line in log-log axes over the straight segment"),
        Column(
            "residual_autocorrelation",
            "float64",
            "of neighbouring residuals of that line; near 0 if it is the whole story",
        ),
        Column(
            "residual_normality",
            "float64",
            "correlation of the residuals' quantiles with normal ones (Q-Q); 1 if normal",
        ),
        Column("knee_epoch", "float64", "first epoch with AIC(power law) <= AIC(exponential) - 2; null: never"),
        Column(
            "knee_epoch_at_loss",
            "float64",
            "first epoch whose mean loss is at most the setting burn_in_loss (not the column), nats; null: never",
        ),
        Column(
            "knee_epoch_break",
            "float64",
            "where two power laws part that are decisively better than one (2 of AICc), if that is in the first 40 % "
            "of the losses, epochs; where it breaks later, too, of the part before; null: there is none",
        ),
        Column("knee_epoch_break_low", "float64", "lower end of its 95 % interval, epochs"),
        Column("knee_epoch_break_high", "float64", "upper end of its 95 % interval, epochs"),
        Column("burn_in_loss", "float64", "loss where the straight segment begins, nats"),
        *_slope("alpha_early", "slope over the early window"),
        Column("alpha_early_bits", "float64", "the same of the loss in bits: equal, as logarithms shift"),
        Column(
            "alpha_early_linear", "float64", "least squares of epoch means on the epoch, linear axes, nats per epoch"
        ),
        Column(
            "alpha_early_linear_bits",
            "float64",
            "the same of the loss in bits, bits per epoch: 1 / ln 2 times as large",
        ),
        *_slope("alpha_full", "slope over the straight segment, to the end"),
        Column(
            "early_break_epoch",
            "float64",
            "where the power law of the early window ends: first decisive break after that window, of the whole curve, "
            "of the straight segment or the knee, epochs; null: there is none, or no alpha_early",
        ),
        Column("early_break_slope_before", "float64", f"slope before that break, {_SLOPE}"),
        Column("early_break_slope_after", "float64", f"slope after it, {_SLOPE}"),
        Column("alpha_start_spread", "float64", "standard deviation of alpha_early over its starts"),
        Column(
            "delta_aic_exponential", "float64", "AICc(exponential) - AICc(power law); positive: the power law is better"
        ),
        Column(
            "delta_aic_two_power", "float64", "AICc(two power laws) - AICc(power law); negative: one line is not enough"
        ),
        Column("delta_aic_offset", "float64", "AICc(power law with offset) - AICc(power law)"),
        Column("delta_aic_exponential_plain", "float64", "the same, counting correlated points as independent"),
        Column("delta_aic_two_power_plain", "float64", "the same, counting correlated points as independent"),
        Column("delta_aic_offset_plain", "float64", "the same, counting correlated points as independent"),
        Column("best_model", "string", "lowest AICc by effective sample size"),
        Column("loss_at_early_stop", "float64", "mean batch loss of the epoch in which the early window ends, nats"),
        Column("last_train_loss", "float64", "mean batch loss of the last epoch, nats"),
        Column(
            "best_validation_loss", "float64", "lowest validation loss (without validation images: test loss), nats"
        ),
        Column("best_validation_epoch", "float64", "when that was, epochs"),
        Column("last_validation_loss", "float64", "the last one, nats"),
        Column("validation_is_test", "bool", "the three before are of test images, as there are no validation images"),
        Column(
            "largest_eigenvalue_plateau_epoch",
            "float64",
            "when largest_eigenvalue stops changing, epochs; null: never, or not measured",
        ),
        Column("largest_eigenvalue_early", "float64", "largest Hessian eigenvalue where the early window ends"),
        Column(
            "spectral_density_tail",
            "float64",
            "mean Welch power spectral density of log-loss residuals, 0.3 to 0.5 cycles per step, per cycle",
        ),
        Column(
            "noise_floor",
            "float64",
            "standard deviation of the batch loss around the straight line: median of robust ones over 64 steps of the "
            "last quarter, nats",
        ),
        Column(
            "residual_power",
            "float64",
            "mean Welch power spectral density of the residuals, 0.02 to 0.1 cycles per step, per cycle",
        ),
        Column(
            "source_sha256", "string", "digest of the metric files, settings and version that this was computed from"
        ),
    ),
)
LOSS_SLOPE_FITS = Table(
    "loss_slope_fits",
    "Every model fitted to every run's loss curve, with parameters, errors and information criteria.",
    (
        *ARM,
        Column(
            "segment",
            "string",
            "straight (from the knee), whole, early, before break and after break (of knee_epoch_break; up to the next "
            "break where there is one), or scan (one of many windows)",
        ),
        Column("model", "string", "exponential, power, power_offset, two_power or two_power_smooth"),
        Column("estimator", "string", "ols, huber or trust_region"),
        Column("first_epoch", "float64", "beginning of the window, epochs; its first step ends a little later"),
        Column("last_epoch", "float64", "its end, epochs"),
        Column("num_points", "int32", "points fitted"),
        Column("effective_sample_size", "float64", "independent points that they are worth"),
        Column("num_parameters", "int16", "of the model, breaks included; the variance of the residuals is one more"),
        Column(
            "intercept",
            "float64",
            "log a: log loss in nats at step 1 (exponential: at step 0; power_offset: log (loss - c) at step 1)",
        ),
        Column("intercept_standard_error", "float64", "of it"),
        Column(
            "slope",
            "float64",
            "power laws: d log loss / d log step, before a break (power_offset: of log (loss - c)); "
            "exponential: per step",
        ),
        Column("slope_standard_error", "float64", "of it"),
        Column("slope_low", "float64", "lower end of its 95 % interval"),
        Column("slope_high", "float64", "upper end of its 95 % interval"),
        Column("slope_after", "float64", "after the break; null for models without"),
        Column("slope_after_standard_error", "float64", "of it"),
        Column("intercept_after", "float64", "of two_power, after the break: log loss in nats at step 1 by that line"),
        Column("intercept_after_standard_error", "float64", "of it"),
        Column("break_epoch", "float64", "where the slope changes, epochs; null for models without"),
        Column("break_epoch_low", "float64", "lower end of its 95 % interval"),
        Column("break_epoch_high", "float64", "upper end of its 95 % interval"),
        Column("break_width", "float64", "of two_power_smooth: s, over which the slope changes, in log step"),
        Column("break_width_standard_error", "float64", "of it"),
        Column("offset", "float64", "c of a t^b + c, nats; null for models without"),
        Column("offset_standard_error", "float64", "of it"),
        Column(
            "rss",
            "float64",
            "weighted sum of squared residuals of log loss (natural logarithm); of huber that of least squares, which "
            "the criteria compare",
        ),
        Column("r_squared", "float64", "share of the variance of log loss that the model explains"),
        Column("aic", "float64", "Akaike's criterion, counting points as independent"),
        Column("aicc", "float64", "the same, corrected for few points"),
        Column("bic", "float64", "Bayesian criterion, counting points as independent"),
        Column("akaike_weight", "float64", "among the models of this segment, by aicc"),
        Column("aic_effective", "float64", "as aic, by effective sample size"),
        Column("aicc_effective", "float64", "as aicc, by effective sample size"),
        Column("bic_effective", "float64", "as bic, by effective sample size"),
        Column("akaike_weight_effective", "float64", "among the models of this segment, by aicc_effective"),
    ),
)
