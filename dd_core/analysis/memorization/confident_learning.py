"""Confident learning as cleanlab does it (Northcutt et al. 2021), a peer of the scores: needs out-of-fold predictions.

Out of fold: by networks that were not trained on the image. Of a study with random subsets these are the trials that
left it out.
"""

import numpy as np


def out_of_fold(probabilities: np.ndarray, is_in: np.ndarray) -> np.ndarray:
    """Mean prediction of the trials that were not trained on an image.

    Args:
        probabilities: (trials, images, classes), NaN where a trial has none.
        is_in: bool (trials, images).

    Returns:
        (images, classes), each row of sum 1; NaN where every trial was trained on the image.
    """
    is_used = ~is_in & ~np.isnan(probabilities).any(2)
    with np.errstate(invalid="ignore"):
        sums = np.einsum("ti,tic->ic", is_used.astype(float), np.nan_to_num(probabilities))
        found: np.ndarray = sums / is_used.sum(0)[:, None]
    return found


def suspicion(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """1 minus cleanlab's label quality (self-confidence, adjusted for how confident each class is), (images,).

    Args:
        labels: int (images,), given.
        predictions: (images, classes), as ``out_of_fold``; images with NaN have none.

    Returns:
        (images,), 1: surely wrong; NaN without a prediction, and for all where a class has no image with one.
    """
    from cleanlab.rank import get_label_quality_scores

    found = np.full(len(labels), np.nan)
    known = ~np.isnan(predictions).any(1)
    # cleanlab wants to see every class, to know how confident predictions of it are.
    if len(np.unique(labels[known])) == predictions.shape[1]:
        quality = get_label_quality_scores(
            labels[known], predictions[known], method="self_confidence", adjust_pred_probs=True
        )
        found[known] = 1 - quality
    return found


def confident_joint(labels: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """Cleanlab's estimate of how many images of each given label (rows) have each true one (columns), int64."""
    from cleanlab.count import compute_confident_joint

    known = ~np.isnan(predictions).any(1)
    joint: np.ndarray = compute_confident_joint(labels[known], predictions[known], calibrate=False)
    return joint
