"""Scores of images from what they showed at every evaluation of a training: one value for each image.

A curve is (evaluations, images), ``epochs`` are those of its rows, ascending; NaN stands for "was not evaluated". An
image without any evaluation has no score, NaN. Where a score is a time, NaN also stands for "never": an image that is
never learned has no time at which it is, and no forgetting events. ``ranks.as_ordered`` puts it where it belongs.
"""

import warnings

import numpy as np

Curve = np.ndarray
Values = np.ndarray


def num_evaluations(losses: Curve) -> Values:
    """At how many evaluations each image was looked at, int64 (images,)."""
    counts: Values = (~np.isnan(losses)).sum(0)
    return counts


def total(curve: Curve) -> Values:
    """Sum over evaluations.

    Of losses it is the cumulative sample loss, CSL(z) = sum_t loss(w_t, z) (Ravikumar et al. 2025, "Towards
    memorization estimation: fast, formal and free", section 4); of norms of the input gradient the loss sensitivity;
    of curvatures the curvature of Garg et al. 2023 and Ravikumar et al. 2024.
    """
    return np.where(_is_known(curve), np.nansum(curve, axis=0), np.nan)


def mean(curve: Curve) -> Values:
    """Mean over evaluations.

    Of margins it is the area under the margin (Pleiss et al. 2020, equation 2); of probabilities of the given label
    the confidence of dataset cartography (Swayamdipta et al. 2020); of the norms |p - y| of early epochs EL2N, and of
    gradients in the weights GraNd (Paul et al. 2021, definitions 2.1 and 2.2, whose means are over trials as well).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of an image without evaluations
        found: Values = np.nanmean(curve, axis=0) if len(curve) else np.full(curve.shape[1], np.nan)
    return found


def final(curve: Curve) -> Values:
    """At the last evaluation of the training; NaN where an image was not part of it."""
    last: Values = curve[-1] if len(curve) else np.full(curve.shape[1], np.nan)
    return last


def learning_time(gradient_norms: Curve, epochs: Values, threshold: float | None = None) -> Values:
    """The first epoch by which the mean squared norm of the input gradient has fallen to the threshold.

    Equation 7 of Ravikumar et al. 2025: min T with (1/T) sum_{t <= T} |grad_x loss|^2 <= tau.

    Args:
        gradient_norms: (evaluations, images).
        epochs: of the evaluations.
        threshold: tau, squared unit of the norms; None: the mean of the squares over all images and evaluations.

    Returns:
        (images,) epochs; NaN where it never falls so far.
    """
    squares = np.square(gradient_norms)
    running = _running_mean(squares)
    tau = _overall_mean(squares) if threshold is None else threshold
    return _first(running <= tau, epochs)


def learning_time_code(gradient_norms: Curve) -> Values:
    """The learning time as the published code has it: the share of epochs before the running mean is below the mean.

    ``score_learning_time`` of CSL-Mem: 1 - mean_t(running mean < tau), of norms that are not squared, with tau the
    mean over all images and epochs. It is no time, and an image may count as learned, unlearned and learned again.
    Epochs without a gradient are left out here; that code takes losses in their place.

    Returns:
        (images,) fraction, 1: never learned.
    """
    running = _running_mean(gradient_norms)
    known = ~np.isnan(gradient_norms)
    below = (running < _overall_mean(gradient_norms)) & known
    with np.errstate(invalid="ignore"):
        shares: Values = 1 - below.sum(0) / known.sum(0)
    return shares


def forgetting_events(correct: Curve) -> Values:
    """How often an image was wrong at an evaluation after it had been right at the one before.

    Toneva et al. 2019, "An empirical study of example forgetting", definition 2.1.

    Args:
        correct: 1.0 right, 0.0 wrong, NaN not evaluated; "the one before" is the last at which the image was.

    Returns:
        (images,); NaN where it was never right, which Toneva et al. sort behind all others.
    """
    previous = _before(correct)
    events = ((previous == 1) & (correct == 0)).sum(0).astype(float)
    events[~(correct == 1).any(0)] = np.nan
    return events


def first_learned_epoch(correct: Curve, epochs: Values) -> Values:
    """The first evaluation at which it was right; NaN: never."""
    return _first(correct == 1, epochs)


def last_learned_epoch(correct: Curve, epochs: Values) -> Values:
    """The evaluation from which on it was always right; NaN: it is not right at its last."""
    wrong = correct == 0
    right_to_the_end = np.flip(np.cumsum(np.flip(wrong, 0), 0), 0) == 0
    return _first(right_to_the_end & (correct == 1), epochs)


def second_split_forgetting(correct: Curve, epochs: Values) -> Values:
    """The first epoch of training on a second split from which on an image of the first is always wrong.

    Maini et al. 2022, "Characterizing datapoints via second-split forgetting", definition 3: small for mislabelled
    images, which are forgotten at once when nothing repeats them.

    Args:
        correct: evaluations while the second split was trained on, of images that it does not hold.
        epochs: since it began.

    Returns:
        (images,) epochs; NaN: it is right at its last evaluation, not forgotten.
    """
    return last_learned_epoch(np.where(np.isnan(correct), np.nan, 1 - correct), epochs)


def probabilities(losses: Curve) -> Curve:
    """Probability of the given label, from its cross-entropy in nats."""
    probable: Curve = np.exp(-losses)
    return probable


def _is_known(curve: Curve) -> np.ndarray:
    known: np.ndarray = (~np.isnan(curve)).any(0)
    return known


def _running_mean(curve: Curve) -> Curve:
    """Mean of all evaluations up to each; NaN before an image's first."""
    counts = np.cumsum(~np.isnan(curve), 0)
    with np.errstate(invalid="ignore"):
        running: Curve = np.nancumsum(curve, 0) / counts
    return running


def _overall_mean(curve: Curve) -> float:
    known = curve[~np.isnan(curve)]
    return float(known.mean()) if len(known) else np.nan


def _first(is_so: np.ndarray, epochs: Values) -> Values:
    """The epoch of the first row at which it is so; NaN: none."""
    if not len(is_so):
        return np.full(is_so.shape[1], np.nan)
    return np.where(is_so.any(0), np.asarray(epochs, float)[is_so.argmax(0)], np.nan)


def _before(curve: Curve) -> Curve:
    """At every evaluation the value of the last one before that is known; NaN: there is none."""
    rows = np.where(np.isnan(curve), -1, np.arange(len(curve))[:, None])
    latest = np.maximum.accumulate(rows, 0)
    latest = np.concatenate([np.full((1, curve.shape[1]), -1), latest[:-1]]) if len(curve) else latest
    values = np.take_along_axis(curve, np.maximum(latest, 0), 0)
    return np.where(latest < 0, np.nan, values)
