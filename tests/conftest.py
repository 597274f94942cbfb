"""What every test may use: studies small enough to train in a second, and a data root of its own."""

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

from dd_core.data import datasets, trials
from dd_core.machine import arithmetic
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.training.train import train_arm

# How long an example takes says nothing on a machine that does other things as well.
hypothesis.settings.register_profile("tests", deadline=None)
hypothesis.settings.load_profile("tests")

# What runs in the background of a shell, or under nohup, ignores signals, and so would every process that tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_number, signal.SIG_DFL)

MakeStudy = Callable[..., Study]

# Their files are short: what comes last should not keep one core busy while the others wait.
_LAST = ("core", "figures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first."""
    items.sort(key=lambda item: item.path.parent.name in _LAST)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Equal sums on every machine, and no fight for its cores."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _every_precision_saves_time() -> Iterator[None]:
    """What is computed does not depend on how fast this machine is."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arithmetic, "slowdown", lambda precision, device: 0.5)
        yield


def _make_study(variant: dict[str, Any] | None = None, **changes: Any) -> Study:
    """A hundred digits, two widths, two trials, four epochs; 20 % wrong labels; batches of 32, 32, 32 and 4."""
    recipe = {
        "architecture": "preact_resnet10",
        "label_noise": 0.2,
        "batch_size": 32,
        "optimizer": {"name": "adam", "learning_rate": 0.002},
        "schedule": {"name": "cosine"},
        "augmentation": {"shift_x": 1},
    }
    content = {
        "name": "tiny",
        "description": "made for tests",
        "data": {"dataset": "digits", "num_train": 100},
        "variants": {"plain": {**recipe, **(variant or {})}},
        "widths": (1, 2),
        "trials": 2,
        "epochs": 4,
        "checkpoints": (0, 2, 4),
    }
    return Study.model_validate({**content, **changes})


@pytest.fixture(scope="session")
def make_study() -> MakeStudy:
    """Make a variation of the tiny study: ``variant`` changes its recipe, other keywords the study."""
    return _make_study


@pytest.fixture(scope="session")
def tiny_study() -> Study:
    return _make_study()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "root")


@pytest.fixture(scope="session")
def _trained_root(tiny_study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trained") / "root"
    for arm in tiny_study.arms.values():
        train_arm(tiny_study, arm, Store(root), until=4)
    return root


@pytest.fixture
def trained(_trained_root: Path, store: Store) -> Store:
    """A store of this test's own in which both arms of the tiny study are trained to the end."""
    shutil.copytree(_trained_root, store.root)
    return store


def _forget() -> None:
    datasets.load.cache_clear()
    trials._trial_data.cache_clear()


@pytest.fixture
def forget_datasets() -> Iterator[None]:
    """Data sets are kept in memory by name; forget them before and after a test that puts others in their place."""
    _forget()
    yield
    _forget()
