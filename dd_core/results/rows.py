"""Per-image curvature of a range of a checkpoint's rows, from weights to columns; knows nothing of files.

A row is a training image of a trial; rows are numbered trial after trial, in the order of the trial's image ids. Every
row says whose it is, so that ranges computed apart can be proven to be the whole, each once. Where classes come one
group after the other, there are rows of the images that a trial has seen, and the loss is that of the classes seen. Of
graphs a row is a training graph, and derivatives are taken in the features of its nodes.
"""

import time
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dd_core.curvature.input_space.finite_difference import finite_difference_curvature
from dd_core.curvature.input_space.graphs import graph_curvature
from dd_core.curvature.input_space.per_image import per_image_curvature
from dd_core.curvature.input_space.ranking import direction_ranking
from dd_core.curvature.input_space.top_directions import Ranking
from dd_core.curvature.trained import as_trained, standardised, targets, trained_network
from dd_core.data.trials import TrialData
from dd_core.study.study import Checkpoint, Study
from dd_core.tasks.graphs import GraphExamples
from dd_core.tasks.losses import Loss, make_loss

_DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16}

# By so many of a trial's training images top_directions ranks directions.
_NUM_RANKING_IMAGES = 16

Families = dict[str, dict[str, Any]]
MakeRanking = Callable[[], Ranking | None]


def compute_rows(
    study: Study,
    checkpoint: Checkpoint,
    weights: dict[str, Tensor],
    data: list[TrialData],
    rows: tuple[int, int],
    families: Families,
    device: torch.device,
    trials: Collection[int],
    recall: Callable[[int, MakeRanking], Ranking | None] = lambda trial, make: make(),
) -> tuple[dict[str, np.ndarray], float]:
    """Every column the families stand for, with ``trial`` and ``image_id``, for rows start to stop of some trials.

    Args:
        study: the study.
        checkpoint: whose weights.
        weights: of all trials, (T, ...) by name.
        data: of every trial, as ``seen_data`` gives it.
        rows: start and stop.
        families: as ``CurvatureSettings.families`` gives them.
        device: where to compute.
        trials: those that have weights; rows of others are left out.
        recall: gives a trial's ranking of directions, which depends on nothing but its network and its images, so
            that ranges of rows may share one; by default it is made for each.

    Returns:
        Columns, one value for each row that is not left out, and seconds of computing.

    Raises:
        UserError: the weights are not finite, or there is not memory for one image.
    """
    num_images, started = len(data[0].train_ids), time.monotonic()
    loss = make_loss(study.variants[checkpoint.arm.variant].loss)
    parts: list[dict[str, np.ndarray]] = []
    for trial in range(rows[0] // num_images, (rows[1] - 1) // num_images + 1):
        if trial not in trials:
            continue
        start = max(rows[0] - trial * num_images, 0)
        stop = min(rows[1] - trial * num_images, num_images)
        model = trained_network(study, checkpoint, weights, trial)
        labels = data[trial].train_labels
        if study.curvature.logits == "seen":
            model, labels = as_trained(study, checkpoint, model, data[trial]), targets(data[trial], slice(None))
        ids = data[trial].train_ids[start:stop]
        if study.data.graphs is not None:
            values = _of_graphs(study, checkpoint.arm.variant, trial, model, (start, stop), families, device, loss)
        else:
            seed = study.seed + trial
            values = _of_trial(
                study, model, data[trial], (start, stop), labels, seed, families, device, loss, partial(recall, trial)
            )
        parts.append({"trial": np.full(len(ids), trial), "image_id": ids, **values})
    if not parts:
        return {"trial": np.zeros(0, int), "image_id": np.zeros(0, int)}, time.monotonic() - started
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}, time.monotonic() - started


def _of_trial(
    study: Study,
    model: nn.Module,
    data: TrialData,
    positions: tuple[int, int],
    given_labels: np.ndarray,
    seed: int,
    families: Families,
    device: torch.device,
    loss: Loss,
    recall: Callable[[MakeRanking], Ranking | None],
) -> dict[str, np.ndarray]:
    """The families' columns for some training images of one trial; ``given_labels`` are those of all."""
    ids = data.train_ids[slice(*positions)]
    labels = torch.from_numpy(given_labels[slice(*positions)]).to(device)
    image_ids = torch.from_numpy(ids).to(device)
    columns: dict[str, np.ndarray] = {}
    if hessian := families.get("hessian"):
        precision = _DTYPES[hessian["precision"]]
        dtype = torch.float64 if precision == torch.float64 else torch.float32
        model, ranking = model.to(device, dtype), None
        if hessian["estimator"] == "top_directions":
            few = np.unique(np.arange(_NUM_RANKING_IMAGES) * len(given_labels) // _NUM_RANKING_IMAGES)
            ranking = recall(
                partial(
                    direction_ranking,
                    model,
                    standardised(study, data, data.train_ids[few], device, dtype),
                    torch.from_numpy(given_labels[few]).to(device),
                    num_images=len(given_labels),
                    relative_error=hessian["relative_error"],
                    num_probes=hessian["num_probes"],
                    loss=loss,
                )
            )
        curvature = per_image_curvature(
            model,
            standardised(study, data, ids, device, dtype),
            labels,
            image_ids=image_ids,
            method=hessian["estimator"],
            precision=precision,
            relative_error=hessian.get("relative_error", 0.01),
            num_probes=hessian.get("num_probes"),
            seed=seed,
            ranking=None if ranking is None else ranking.to(device),
            loss=loss,
        )
        columns |= {name: values.numpy() for name, values in curvature.columns.items()}
        columns["method"] = np.full(len(ids), curvature.method)
    if difference := families.get("finite_difference"):
        values = finite_difference_curvature(
            model.to(device, torch.float32),
            standardised(study, data, ids, device, torch.float32),
            labels,
            image_ids,
            seed=seed,
            loss=loss,
            **{name: value for name, value in difference.items() if name != "logits"},
        )
        columns |= {name: value.numpy() for name, value in values.items()}
    return columns


def _of_graphs(
    study: Study,
    variant: str,
    trial: int,
    model: nn.Module,
    positions: tuple[int, int],
    families: Families,
    device: torch.device,
    loss: Loss,
) -> dict[str, np.ndarray]:
    """The columns of ``exact`` for some training graphs of one trial, with the node features of evaluations."""
    if not (hessian := families.get("hessian")):
        return {}
    dtype = _DTYPES[hessian["precision"]]
    examples = GraphExamples(study, variant, [trial], device, dtype)
    graphs, labels = examples.evaluated(examples.whole, *positions)
    curvature = graph_curvature(model.to(device, dtype), graphs, labels[:, 0], loss=loss)
    columns = {name: values.numpy() for name, values in curvature.items()}
    return {**columns, "method": np.full(len(labels), hessian["estimator"])}
