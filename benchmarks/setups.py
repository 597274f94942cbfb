"""What the benchmarks of training train: recipes, and images of CIFAR's shape where CIFAR itself is not at hand."""

import hashlib
import json
import os
import pickle
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dd_core.study.study import Arm, Study

RECIPES: dict[str, dict[str, Any]] = {
    "cifar10": {
        "architecture": "preact_resnet18",
        "label_noise": 0.15,
        "batch_size": 128,
        "optimizer": {"name": "adam", "learning_rate": 1e-4},
        "augmentation": {"shift_x": 4, "shift_y": 4, "flip": True},
    },
    "digits": {
        "architecture": "preact_resnet10",
        "label_noise": 0.2,
        "batch_size": 100,
        "optimizer": {"name": "adam", "learning_rate": 2e-3},
        "schedule": {"name": "cosine"},
        "augmentation": {"shift_x": 1},
    },
}
NSM_OPTIMIZER = {"name": "adam", "learning_rate": 1e-4, "weight_decay": 1e-5, "clip_norm": 1.0}


@dataclass(frozen=True)
class Setup:
    """What is trained.

    Attributes:
        name: the key of its ratio.
        study: with one variant.
        arm: of it.
        num_steps: optimiser steps of each trial in one repetition.
    """

    name: str
    study: Study
    arm: Arm
    num_steps: int


def make_setup(name: str, dataset: str, k: int, trials: int, num_steps: int, **recipe: Any) -> Setup:
    """One width of ResNet18k on CIFAR-10 or of the quickstart's ResNet10k on the digits."""
    content = {
        "name": "benchmark",
        "description": "speed",
        "data": {"dataset": dataset, "num_train": 1000 if dataset == "digits" else None},
        "variants": {"adam": {**RECIPES[dataset], **recipe}},
        "widths": [k],
        "trials": trials,
        "epochs": 4000,
        "checkpoints": [4000],
        "monitors": {"validation": None, "norms": None, "hessian": None, "noise": None},
    }
    return Setup(name, Study.model_validate_json(json.dumps(content)), Arm("adam", k), num_steps)


def write_made_up_cifar(folder: Path, num_train: int, num_test: int) -> None:
    """Random images in the files of CIFAR-10's Python version, with as many images as one likes.

    Nothing here measures what a network learns, so speed needs images of the right shape, not the right images.
    """
    random = np.random.default_rng(0)
    base = folder / "cifar-10-batches-py"
    base.mkdir(parents=True)
    sizes = {f"data_batch_{number}": num_train // 5 for number in range(1, 6)} | {"test_batch": num_test}
    for name, size in sizes.items():
        rows = random.integers(0, 256, (size, 3072), dtype=np.uint8)
        content = {"data": rows, "labels": random.integers(0, 10, size).tolist()}
        (base / name).write_bytes(pickle.dumps(content, protocol=2))
    (base / "batches.meta").write_bytes(pickle.dumps({"label_names": [str(i) for i in range(10)]}, protocol=2))


def use_made_up_cifar(folder: Path) -> None:
    """Let this process load them as CIFAR-10; the loaders, torchvision's too, must be told their MD5 sums."""
    from torchvision.datasets import CIFAR10

    from dd_core.study.datasets import DATASETS

    def sum_of(name: str) -> str:
        return hashlib.md5((folder / CIFAR10.base_folder / name).read_bytes()).hexdigest()

    os.environ["DD_DATASETS"] = str(folder)
    names = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
    DATASETS["cifar10"] = replace(DATASETS["cifar10"], files={name: sum_of(name) for name in names})
    *CIFAR10.train_list, test = [[name, sum_of(name)] for name in names]
    CIFAR10.test_list = [test]
    CIFAR10.meta = {**CIFAR10.meta, "md5": sum_of("batches.meta")}


def nsm_study(domain: str, num_train: int, **settings: Any) -> Study:
    """Graph networks of the published sizes: k = 64, 64 features, batches of 64. ``settings``: of the network."""
    own = {"cycle_weight": 0.05, "pool_ratio": 0.13} if domain == "knowledge_graph" else {}
    variant = {
        "architecture": "nsm",
        "nsm": {"domain": domain, **own, **settings},
        "batch_size": 64,
        "optimizer": NSM_OPTIMIZER,
    }
    content = {
        "name": "benchmark",
        "description": "speed",
        "data": {"dataset": "nsm", "num_train": num_train, "graphs": {"labels": "as_published", "num_test": 0}},
        "variants": {"plain": variant},
        "widths": (64,),
        "trials": 1,
        "epochs": 1000,
        "checkpoints": (1000,),
        "monitors": dict.fromkeys(("validation", "norms", "hessian", "noise")),
    }
    return Study.model_validate(content)
