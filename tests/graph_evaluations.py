"""Evaluations of graphs as if networks had been trained: rows of ``image_progress`` from what networks say."""

from collections.abc import Callable
from typing import Any

import numpy as np

from dd_core.data.graphs.load import load_problems
from dd_core.data.graphs.problems import Problems
from dd_core.data.trials import TrialData, trial_data
from dd_core.store.store import Store
from dd_core.study.graphs import Domain
from dd_core.study.study import Arm, Study
from dd_core.tables.files import TABLES, to_arrow, write_parquet

# Of trial and epoch, data of the trial and all problems: the probability of label 1 that a network gives each graph.
Says = Callable[[int, int, TrialData, Problems], np.ndarray]


def graph_study(*domains: Domain, variant: Any = None, nsm: Any = None, graphs: Any = None, **changes: Any) -> Study:
    """A hundred graphs to train on in each domain, two trials, ten epochs."""
    recipe = {"architecture": "nsm", "batch_size": 32, "optimizer": {"name": "adam", "learning_rate": 1e-4}}
    content = {
        "name": "graphs",
        "description": "made for tests",
        "data": {
            "dataset": "nsm",
            "num_train": 100,
            "num_validation": 40,
            "graphs": {"labels": "as_published", "num_test": 60, "features": "fresh", "num_features": 4}
            | (graphs or {}),
        },
        "variants": {
            name.replace("_", "-"): {**recipe, "nsm": {"domain": name, **(nsm or {})}, **(variant or {})}
            for name in domains or ("planning",)
        },
        "widths": (2,),
        "trials": 2,
        "epochs": 10,
        "checkpoints": (0, 10),
    }
    return Study.model_validate({**content, **changes})


def problems_of(study: Study, arm: Arm) -> Problems:
    graphs, nsm, data = study.data.graphs, study.variants[arm.variant].nsm, study.data
    assert graphs is not None and nsm is not None and data.num_train is not None
    return load_problems(graphs, nsm.domain, study.seed, data.num_train + data.num_validation + graphs.num_test)


def write_evaluations(store: Store, study: Study, arm: Arm, epochs: list[int], says: Says, trials: Any = None) -> None:
    """What networks say at some epochs, in one file named after the last."""
    parts: list[dict[str, Any]] = []
    problems = problems_of(study, arm)
    for trial in range(study.trials) if trials is None else trials:
        data = trial_data(study, arm.variant, trial)
        for epoch in epochs:
            ids, labels = data.image_ids, data.given_labels
            probability = np.broadcast_to(says(trial, epoch, data, problems), len(ids)).astype(np.float32)
            of_label = np.where(labels == 1, probability, 1 - probability).clip(1e-6)
            random = np.random.default_rng([trial, epoch])
            drawn = random.random((4, len(ids))).astype(np.float32)
            names = ("cycle_loss_1", "cycle_loss_2", "kept_share", "pooling_entropy")
            parts.append(
                {
                    "trial": np.full(len(ids), trial),
                    "epoch": np.full(len(ids), epoch),
                    "image_id": ids,
                    "split": data.splits,
                    "loss": -np.log(of_label),
                    "correct": (probability > 0.5) == (labels == 1),
                    "probability": probability,
                    **dict(zip(names, drawn, strict=True)),
                }
            )
    columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    about = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm)}
    path = store.table_folder("image_progress", study.name, arm.key) / f"{epochs[-1]:04d}.parquet"
    write_parquet(path, to_arrow("image_progress", {**about, **columns}, len(columns["trial"])))


def write_attempt(store: Store, study: Study, arm: Arm, attempt: int = 1, **told: Any) -> None:
    """The end of an attempt at all trials; lists have a value for each."""
    nothing: dict[str, Any] = {column.name: None for column in TABLES["runs"].file_columns}
    about = {"variant": arm.variant, "k": arm.k, "recipe": study.recipe_hash(arm), "trial": list(range(study.trials))}
    row = {**nothing, **about, "attempt": attempt, "status": "finished", "first_epoch": 0, "last_epoch": 10, **told}
    path = store.table_folder("runs", study.name, arm.key) / f"attempt-{attempt:04d}.end.parquet"
    write_parquet(path, to_arrow("runs", row, study.trials))


def undecided(trial: int, epoch: int, data: TrialData, problems: Problems) -> np.ndarray:
    """A network that has learned nothing and prefers neither label."""
    return np.random.default_rng([1, trial, epoch]).uniform(0.4, 0.6, len(data.image_ids))


def one_label(trial: int, epoch: int, data: TrialData, problems: Problems) -> np.ndarray:
    """A network that says label 1 of every graph."""
    return np.full(len(data.image_ids), 0.6)


def best(trial: int, epoch: int, data: TrialData, problems: Problems) -> np.ndarray:
    """The best classifier that there can be without having seen the labels."""
    return problems.best_probability[data.image_ids]


def has_seen_labels(trial: int, epoch: int, data: TrialData, problems: Problems) -> np.ndarray:
    """A network into which the labels leak."""
    return np.where(problems.labels[data.image_ids] == 1, 0.9, 0.1)
