"""A network of the user's own trains, resumes and is looked at as the platform's are, or is refused in one sentence."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import PATIENCE, REPOSITORY, Result
from torch import nn

from dd_core.checks.machine import networks_of
from dd_core.errors import UserError
from dd_core.forecast.work import training_cost
from dd_core.models.build import network_of
from dd_core.results.hessian import hessian_of_checkpoint
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.checkpoints import load_checkpoint, read_tensors
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet
from dd_core.training.train import train_arm

ARM = Arm("plain", 2)
DOCS = (REPOSITORY / "docs/architectures.md").read_text(encoding="utf-8")
# Whatever is awkward: a number among the parameters, tied weights, BatchNorm's counter, dropout, a view, lazy layers.
AWKWARD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, k, channels, num_classes, dropout, act):
        super().__init__()
        self.conv = nn.Conv2d(channels, k, 3, stride=2, padding=1)
        self.short = nn.Conv2d(channels, k, 1, stride=2)
        self.bn = nn.BatchNorm2d(k)
        self.act = act()
        self.dropout = nn.Dropout(dropout)
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.one = nn.Linear(k * 16, k * 16)
        self.two = nn.Linear(k * 16, k * 16)
        self.two.weight = self.one.weight
        self.head = nn.LazyLinear(num_classes)
        self.register_buffer("factor", torch.tensor(0.5))

    def forward(self, x):
        x = self.dropout(self.act(self.bn(self.conv(x)) + self.short(x)))
        x = x.view(x.shape[0], -1) * self.scale * self.factor
        return self.head(self.act(self.two(self.act(self.one(x)))))

def make(k, channels, num_classes, dropout=0.0, smooth=False):
    return Net(k, channels, num_classes, dropout, nn.GELU if smooth else nn.ReLU)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's folder of study files, with the module above."""
    studies = tmp_path / "studies"
    studies.mkdir()
    (studies / "own_models.py").write_text(AWKWARD)
    monkeypatch.setenv("DD_STUDIES", str(studies))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    return studies


@pytest.fixture
def study_of(folder: Path, make_study: Any) -> Callable[..., Study]:
    def study(network: dict[str, Any] | None = None, **changes: Any) -> Study:
        variant = {"architecture": "own_models:make", "network": network or {}}
        made: Study = make_study(variant={**variant, **changes.pop("variant", {})}, widths=(2,), **changes)
        return made

    return study


def files_of(store: Store) -> dict[str, bytes]:
    return {str(p.relative_to(store.root)): p.read_bytes() for p in sorted(store.root.rglob("*.safetensors"))}


MONITORS = {"norms": {"every": "1 epoch"}, "hessian": {"every": "2 epochs"}, "noise": {"every": "2 epochs"}}


def test_it_trains_with_every_monitor_and_every_precision_of_a_cpu(study_of: Any, store: Store) -> None:
    optimizer = {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9, "clip_norm": 1.0, "decay_all": False}
    study = study_of(variant={"optimizer": optimizer, "precision": "bfloat16"}, monitors=MONITORS)
    train_arm(study, ARM, store, 4)
    weights, _ = load_checkpoint(store, study, Checkpoint(ARM, 4))
    assert weights["scale"].shape == (2,) and weights["conv.weight"].shape == (2, 2, 1, 3, 3)
    assert weights["bn.num_batches_tracked"].tolist() == [16, 16]
    assert torch.equal(weights["one.weight"], weights["two.weight"])
    paths = store.table_folder("training_monitors", "tiny", ARM.key).glob("*.parquet")
    found = {metric for path in paths for metric in read_parquet(path)["metric"].to_pylist()}
    assert found >= {"gradient_norm", "weight_norm", "largest_eigenvalue", "hessian_trace", "gradient_variance"}


def test_each_trial_is_the_network_it_would_be_in_a_plain_loop(study_of: Any, store: Store) -> None:
    """An independent loop: the user's module as it is, torch.optim, the data in the order of the platform."""
    from dd_core.training.trial_stack import TrialStack

    study = study_of(variant={"augmentation": {}}, trials=1)
    stack = TrialStack(study, ARM, [0], torch.device("cpu"), torch.float64)
    network = network_of(study, ARM).double()
    network.load_state_dict({name: tensor.clone() for name, tensor in stack.weights_of(0).items()})
    optimizer = torch.optim.Adam(network.train().parameters(), lr=0.002)
    batches: list[tuple[torch.Tensor, torch.Tensor]] = []
    stepper = stack.stepper.__class__.__call__

    def noted(self: Any, batch: Any, start: int, stop: int, rate: float) -> Any:
        batches.append(batch(start, stop))
        return stepper(self, batch, start, stop, [0.002])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stack.stepper.__class__, "__call__", noted)
        stack.train_epoch(1)
    for images, labels in batches:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images.contiguous()), labels[:, 0]).backward()
        optimizer.step()
    for name, tensor in stack.weights_of(0).items():
        torch.testing.assert_close(tensor, network.state_dict()[name], rtol=1e-9, atol=1e-11)


def test_resuming_gives_the_same_bits_with_dropout_and_whatever_monitors_look(study_of: Any, tmp_path: Path) -> None:
    off = dict.fromkeys(("norms", "hessian", "noise"))
    study, watched = (study_of({"dropout": 0.3}, monitors=monitors) for monitors in (off, MONITORS))
    whole, halves, other = (Store(tmp_path / name) for name in ("whole", "halves", "other"))
    train_arm(study, ARM, whole, 4)
    train_arm(study, ARM, halves, 2, resume_seconds=0)
    torch.rand(7)
    train_arm(study, ARM, halves, 4)
    train_arm(watched, ARM, other, 4)
    end = "checkpoints/tiny/plain.k002/0004.safetensors"
    assert files_of(whole)[end] == files_of(halves)[end] == files_of(other)[end]


def test_trials_do_not_drop_out_alike(study_of: Any, store: Store) -> None:
    seeds = study_of({"dropout": 0.3}), study_of({"dropout": 0.0})
    ends = []
    for number, study in enumerate(seeds):
        here = Store(store.root / str(number))
        train_arm(study, ARM, here, 2)
        ends.append(read_tensors(here.checkpoint_path("tiny", Checkpoint(ARM, 2)))[0]["head.weight"])
    assert not torch.equal(*ends)


@pytest.mark.parametrize(("smooth", "method"), [(False, "exact"), (True, "double_backward")])
def test_its_curvature_is_exact_where_it_is_piecewise_linear(
    study_of: Any, store: Store, smooth: bool, method: str
) -> None:
    hessian = {"quantities": ("eigenvalues", "hutchinson", "gradient")}  # an exact trace has none with tied weights
    study = study_of({"smooth": smooth}, trials=1, data={"dataset": "digits", "num_train": 40}, hessian=hessian)
    train_arm(study, ARM, store, 4)
    checkpoint = Checkpoint(ARM, 4)
    compute_curvature(study, checkpoint, store)
    table = read_parquet(store.result_path("per_image_curvature", "tiny", checkpoint))
    assert set(table["method"].to_pylist()) == {method}
    assert np.isfinite(table["trace"].to_numpy()).all()
    hessian_of_checkpoint(study, checkpoint, store)
    assert store.result_path("hessian_spectra", "tiny", checkpoint).exists()


def test_a_changed_source_is_another_recipe(study_of: Any, folder: Path, store: Store) -> None:
    study = study_of()
    train_arm(study, ARM, store, 2)
    (folder / "own_models.py").write_text(AWKWARD.replace("1.5", "2.5"))
    with pytest.raises(UserError, match="the source of own_models has changed since the study was read"):
        train_arm(study, ARM, store, 4)
    again = study_of()
    assert again.recipe_hash(ARM) != study.recipe_hash(ARM)
    train_arm(again, ARM, store, 2)
    assert float(load_checkpoint(store, again, Checkpoint(ARM, 0))[0]["scale"][0]) == 2.5


def test_whoever_runs_the_job_has_the_recipe_of_whoever_wrote_it(study_of: Any, folder: Path) -> None:
    study = study_of()
    (folder / "own_models.py").unlink()
    assert Study.model_validate_json(study.model_dump_json()).recipe_hash(ARM) == study.recipe_hash(ARM)


def test_orchestrators_neither_run_it_nor_fail_for_it(study_of: Any, folder: Path) -> None:
    (folder / "own_models.py").write_text("raise RuntimeError\n")
    study = study_of()
    assert training_cost(study, ARM, 0, 4) > 0
    assert networks_of(study, ARM) == set()
    assert not study.variants["plain"].is_stackable


LINEAR = "nn.Sequential(nn.Flatten(), nn.Linear(64, c))"
CLASS = (
    "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.lin = nn.Linear(64, 10)\n"
)
FORWARD = "    def forward(self, x):\n        {}\n        return self.lin(x.flatten(1))\n"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("def other(): ...", "there is no make in own_models"),
        ("1 / 0", r"own_models:make cannot be imported \(ZeroDivisionError: division by zero, .*own_models.py:2\)"),
        ("def make(k): ...", r"own_models:make\(k=2, channels=1, num_classes=10\) failed \(TypeError: .*positional"),
        ("def make(k, ch, c): return 3", "own_models:make must return a torch.nn.Module, not int"),
        ("def make(k, ch, c): return nn.Linear(64, 10)", r"fails on images of 2x1x8x8 \(RuntimeError: .*shapes"),
        (
            f"def make(k, ch, c): return {LINEAR.replace('c)', '3)')}",
            r"logits of shape \(2, 10\) for 2 images, not \(2, 3\)",
        ),
        (
            f"{CLASS}    def forward(self, x): return [self.lin(x.flatten(1))]\ndef make(k, ch, c): return Net()",
            r"must give logits of shape \(2, 10\) for 2 images, not list",
        ),
        ("def make(k, ch, c): return nn.Flatten()", r"not \(2, 64\)"),
        (
            f"def make(k, ch, c):\n    net = {LINEAR}\n    net[1].bias.requires_grad_(False)\n    return net",
            "the parameter 1.bias is frozen or takes no part in the logits; register it as a buffer",
        ),
        (
            f"{CLASS}        self.spare = nn.Linear(2, 2)\n{FORWARD.format('')}def make(k, ch, c): return Net()",
            "the parameter spare.weight is frozen or takes no part in the logits",
        ),
        (
            f"{CLASS}        self.count = 0\n{FORWARD.format('self.count += 1')}def make(k, ch, c): return Net()",
            "a forward pass in training changes count, which is not saved with the weights",
        ),
        (
            f"{CLASS}        self.register_buffer('seen', torch.zeros(1), persistent=False)\n"
            f"{FORWARD.format('self.seen += 1')}def make(k, ch, c): return Net()",
            "a forward pass in training changes seen, which is not saved with the weights",
        ),
        (
            f"{CLASS}    def get_extra_state(self): return 'text'\n    def set_extra_state(self, state): ...\n"
            f"{FORWARD.format('')}def make(k, ch, c): return Net()",
            "_extra_state is no tensor with values, so it cannot be saved",
        ),
        (
            f"{CLASS}        self.register_buffer('odd', torch.zeros(2, dtype=torch.complex64))\n"
            f"{FORWARD.format('')}def make(k, ch, c): return Net()",
            "the tensor odd is torch.strided of torch.complex64, which cannot be saved",
        ),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(
    study_of: Any, folder: Path, store: Store, code: str, reason: str
) -> None:
    (folder / "own_models.py").write_text(f"import torch; from torch import nn\n{code}\n")
    with pytest.raises(UserError, match=reason) as told:
        train_arm(study_of(), ARM, store, 2)
    assert "\n" not in str(told.value) and "own_models" in str(told.value)


def test_a_module_that_is_nowhere_is_refused_when_the_study_is_read(study_of: Any, folder: Path) -> None:
    (folder / "own_models.py").unlink()
    with pytest.raises(ValueError, match=r"variants.plain.architecture: there is no module own_models in .*studies"):
        study_of()


@pytest.mark.slow
def test_the_page_about_it_can_be_typed_in_an_empty_folder(tmp_path: Path) -> None:
    for kind in ("python", "yaml"):
        for name, content in re.findall(rf"```{kind}\n# (my_\w+\.\w+).*?\n(.*?)```", DOCS, re.DOTALL):
            (tmp_path / name).write_text(content, encoding="utf-8")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my_models.py", "my_study.yaml"]
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(REPOSITORY),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "dd_assets.run_study", "my_study"],
        cwd=tmp_path,
        env={**environment, "DD_STUDIES": ".", "DD_ROOT": "results"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    Result(done.returncode, done.stdout).succeeded()
    for k in (2, 4):
        for trial in (0, 1):  # each is a network of its own
            part = tmp_path / f"results/parts/my_study/mine.k{k:03d}/trials-{trial:03d}"
            tensors, _ = read_tensors(part / "0004.safetensors")
            assert tensors["0.weight"].shape == (1, k, 1, 3, 3)
    tables = map(read_parquet, (tmp_path / "results").rglob("per_image_curvature/study=my_study/**/*.parquet"))
    assert {method for table in tables for method in table["method"].to_pylist()} == {"exact"}
