"""Weights of others become sound checkpoints, bit by bit; what is damaged, strange or incomplete is refused whole."""

import contextlib
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from dd_assets import import_checkpoints as command
from dd_core.curvature.trained import standardised
from dd_core.data.datasets import load
from dd_core.data.trials import trial_data
from dd_core.models.build import build
from dd_core.results.per_image_curvature import compute_curvature
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.files import read_study
from dd_core.tables import warehouse
from dd_core.tables.warehouse import connect
from dd_core.weights import importer

from .exchanged import snapshot

HOW = "--dataset digits --k 2 --architecture incremental_resnet18 --batch-size 90 --optimizer sgd --learning-rate 0.1"
State = dict[str, Tensor]


def network(seed: int = 0, num_classes: int = 10, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    return build("incremental_resnet18", options.get("k", 2), 1, num_classes)


class _Bench:
    """A data root, a folder of study files, and files of others, that the command is run on."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]):
        self.store, self.studies, self.files = Store(folder / "root"), folder / "studies", folder / "files"
        self.studies.mkdir()
        self.files.mkdir()
        self._capsys = capsys

    def save(self, name: str, content: Any) -> Path:
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        return path

    def load(self, options: str = "", pattern: str = "{epoch}.pt") -> str:
        """Run the command; returns what it printed."""
        arguments = ["other", str(self.files), *(["--pattern", pattern] if pattern else []), *options.split()]
        code = command.main(arguments)
        printed = self._capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    def refuse(self, options: str = "", pattern: str = "{epoch}.pt") -> str:
        """The sentence of a refusal, which must leave nothing behind."""
        before = snapshot(self.store.root, self.studies)
        code = command.main(["other", str(self.files), *(["--pattern", pattern] if pattern else []), *options.split()])
        error = self._capsys.readouterr().err
        assert code == 1
        assert error.startswith("Error: ")
        assert error.count("\n") == 1
        assert without_locks(snapshot(self.store.root, self.studies)) == without_locks(before)
        return error

    def weights(self, key: str) -> dict[str, Tensor]:
        study = read_study(self.studies / "other.yaml")
        return load_checkpoint(self.store, study, study.checkpoint(key))[0]

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(connect(self.store)) as connection:
            return connection.execute(sql).fetchall()


def without_locks(files: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in files.items() if "locks" not in name and "layout" not in name}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[_Bench]:
    bench = _Bench(tmp_path, capsys)
    monkeypatch.setenv("DD_ROOT", str(bench.store.root))
    monkeypatch.setenv("DD_STUDIES", str(bench.studies))
    monkeypatch.setattr(warehouse, "refresh", lambda store: None)  # takes longer than all else; not looked at here
    yield bench


def same(ours: dict[str, Tensor], trial: int, theirs: State) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        assert torch.equal(tensor[trial], theirs[name]), name


def test_weights_arrive_bit_by_bit_and_sql_finds_them(bench: _Bench) -> None:
    states = {epoch: network(epoch).state_dict() for epoch in (0, 5)}
    for epoch, state in states.items():
        bench.save(f"{epoch}.pt", state)
    assert "2 checkpoints of imported.k002, epochs 0 to 5, 1 trial" in bench.load(HOW)
    for epoch, state in states.items():
        same(bench.weights(f"imported.k002|{epoch:04d}"), 0, state)
    assert bench.rows("SELECT arm, trial, status, last_epoch, num_parameters FROM runs") == [
        ("imported.k002", 0, "imported", 5, sum(p.numel() for p in network().parameters()))
    ]
    ((number,),) = bench.rows("SELECT count(*) FROM images WHERE study = 'other' AND split = 'train'")
    assert number == 1797


def test_images_of_ones_own_are_named_as_a_study_file_names_them(bench: _Bench, tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 9, (20, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, labels=np.arange(20) % 10)
    bench.save("1.pt", network().state_dict())
    bench.load(HOW.replace("digits", str(tmp_path / "mine.npz")))
    assert "nothing was changed" in bench.load()
    bench.save("2.pt", network(2).state_dict())
    bench.load()
    same(bench.weights("imported.k002|0002"), 0, network(2).state_dict())


def test_images_are_standardised_as_where_the_weights_come_from(bench: _Bench) -> None:
    bench.save("1.pt", network().state_dict())
    assert "data.standardisation.mean: 2 values for the 1 channels of digits" in bench.refuse(
        f"{HOW} --mean 0.1,0.2 --std 0.3,0.4"
    )
    assert "--mean and --std belong together" in bench.refuse(f"{HOW} --mean 0.1")
    bench.load(f"{HOW} --mean 0.25 --std 0.5")
    study = read_study(bench.studies / "other.yaml")
    data, cpu = trial_data(study, "imported", 0), torch.device("cpu")
    images = standardised(study, data, data.train_ids[:2], cpu, torch.float64)
    raw = torch.from_numpy(load("digits").images[data.train_ids[:2]]).double()
    torch.testing.assert_close(images[:, 0], (raw[..., 0] / 16 - 0.25) / 0.5)  # 16 is the darkest ink
    bench.save("2.pt", network(2).state_dict())
    bench.load()
    assert read_study(bench.studies / "other.yaml").data == study.data


def test_the_same_import_changes_nothing_and_further_epochs_and_trials_join(bench: _Bench) -> None:
    for trial in (0, 1):
        for epoch in (0, 5):
            bench.save(f"s{trial}/{epoch}.pt", network(10 * trial + epoch).state_dict())
    pattern = "s{seed}/{epoch}.pt"
    bench.load(HOW, pattern)
    before = snapshot(bench.store.root, bench.studies)
    assert "nothing was changed" in bench.load("", pattern)
    assert "nothing was changed" in bench.load(HOW, pattern)
    assert snapshot(bench.store.root, bench.studies) == before
    # A copy has another time, but the same bytes.
    text = (bench.files / "s1/5.pt").read_bytes()
    (bench.files / "s1/5.pt").unlink()
    (bench.files / "s1/5.pt").write_bytes(text)
    assert "nothing was changed" in bench.load("", pattern)
    for trial in (0, 1):
        bench.save(f"s{trial}/7.pt", network(10 * trial + 7).state_dict())
    bench.load("", pattern)
    for epoch in (0, 5, 7):
        bench.save(f"s2/{epoch}.pt", network(20 + epoch).state_dict())
    bench.load("", pattern)
    for trial in (0, 1, 2):
        for epoch in (0, 5, 7):
            same(bench.weights(f"imported.k002|{epoch:04d}"), trial, network(10 * trial + epoch).state_dict())
    assert "epochs: 7" in (bench.studies / "other.yaml").read_text()


def test_a_changed_file_is_told_and_replaces_only_if_asked_and_a_damaged_checkpoint_is_mended(bench: _Bench) -> None:
    bench.save("5.pt", network().state_dict())
    bench.load(HOW)
    bench.save("5.pt", network(1).state_dict())
    assert "is not what was imported as imported.k002|0005, trial 0" in bench.refuse()
    bench.load("--replace")
    same(bench.weights("imported.k002|0005"), 0, network(1).state_dict())
    (path,) = bench.store.root.glob("checkpoints/**/*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    bench.load()
    same(bench.weights("imported.k002|0005"), 0, network(1).state_dict())


def test_an_import_that_was_killed_is_completed_by_the_same_command(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for epoch in (1, 2):
        bench.save(f"s0/{epoch}.pt", network(epoch).state_dict())
    bench.load(HOW, "s{seed}/{epoch}.pt")
    (bench.files / "s0").rename(bench.files / "gone")
    for epoch in (1, 2):
        bench.save(f"s1/{epoch}.pt", network(10 + epoch).state_dict())

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(importer, "save_checkpoint", killed)  # the weights are in place, their manifest is not
        bench.load("--trial 1", "s1/{epoch}.pt")
    bench.load("--trial 1", "s1/{epoch}.pt")
    for trial in (0, 1):
        same(bench.weights("imported.k002|0002"), trial, network(10 * trial + 2).state_dict())


def test_wrappers_are_looked_into_and_their_prefixes_stripped(bench: _Bench) -> None:
    model = network()
    ema = AveragedModel(network(1))
    state = {f"module._orig_mod.{name}": tensor for name, tensor in model.state_dict().items()}
    state |= {"module._orig_mod.bn1.num_batches_tracked": torch.tensor(7)}
    bench.save(
        "1.pt", {"state_dict": state, "epoch": 3, "best": torch.tensor(76.1), "ema": {"shadow": ema.state_dict()}}
    )
    bench.save("2.pt", {"model": {"model_state_dict": model.half().state_dict()}})
    torch.save(model.float().state_dict(), bench.files / "3.pt", _use_new_zipfile_serialization=False)
    bench.load(HOW)
    same(bench.weights("imported.k002|0001"), 0, network().state_dict())
    same(bench.weights("imported.k002|0002"), 0, {n: t.float() for n, t in network().half().state_dict().items()})
    same(bench.weights("imported.k002|0003"), 0, model.state_dict())
    for epoch in (2, 3):
        (bench.files / f"{epoch}.pt").unlink()
    assert "is not what was imported" in bench.refuse("--key ema.shadow")
    bench.load("--key ema.shadow --replace")
    same(bench.weights("imported.k002|0001"), 0, network(1).state_dict())
    assert "has no key swa; its keys are state_dict, epoch, best and 1 others" in bench.refuse("--key swa --replace")


class _Payload:
    """What no file of weights should hold."""

    def __reduce__(self) -> Any:
        return print, ("code was run",)


class _Blocked:
    """What torch refuses by the name of its module."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


def test_files_that_are_no_weights_of_this_network_are_refused_in_a_sentence(bench: _Bench) -> None:
    good = bench.save("1.pt", network().state_dict())

    def refused(content: Any) -> str:
        bench.save("2.pt", content)
        return bench.refuse(HOW)

    state = network().state_dict()
    assert "holds Python objects beside tensors (print)" in refused({"a": _Payload()})
    assert "lacks conv1.bias, layer1.0.conv1.bias, layer1.0.conv2.bias and" in refused(
        {name: tensor for name, tensor in state.items() if "conv" not in name or "bias" not in name}
    )
    assert "it has extra" in refused({**state, "extra": torch.zeros(1)})
    assert "is of 100 classes, and incremental_resnet18 of k = 2 for" in refused(network(0, 100).state_dict())
    assert "conv1.weight is (4, 1, 3, 3) and should be (2, 1, 3, 3), " in refused(network(k=4).state_dict())
    assert "fc.bias has values that are not finite" in refused({**state, "fc.bias": torch.full((10,), torch.nan)})
    assert "has fc.bias twice, with and without a prefix" in refused({**state, "module.fc.bias": state["fc.bias"]})
    assert "fc.bias is torch.int32, and should be torch.float32" in refused({**state, "fc.bias": torch.ones(10).int()})
    assert "holds Python objects beside tensors (posix.system), and reading" in refused({**state, "a": _Blocked()})
    assert "it is no state_dict" in refused({"epoch": 3})
    assert "its keys are epoch, net, best; choose" in refused({"epoch": 3, "net": state, "best": torch.tensor(76.1)})
    assert "it is no state_dict" in refused([1, 2])
    (bench.files / "2.pt").write_bytes(pickle.dumps(_Blocked(), protocol=4))
    assert "2.pt: is pickled by another protocol than that of torch.save, and" in bench.refuse(HOW)
    size = good.stat().st_size
    for length in (0, 100, size // 2, size - 1000):
        (bench.files / "2.pt").write_bytes(good.read_bytes()[:length])
        assert "2.pt: is no whole file of torch.save" in bench.refuse(HOW)


def test_published_files_come_with_their_orders_of_classes(bench: _Bench, tmp_path: Path) -> None:
    how = "--dataset digits --k 2 --classes 2,2,3"
    for trial in (0, 1):
        for epoch in (0, 3, 15):
            name = f"model_parameters/{'checkpoint_' * trial}index-{trial}_epoch-{epoch}.pt"
            bench.save(name, network(10 * trial + epoch).state_dict())
    assert "the order in which classes came, does not exist; say where it is with" in bench.refuse(how, "")
    orders = [np.random.default_rng(trial).permutation(10) for trial in (0, 1)]
    folder = bench.files / "class_order"
    folder.mkdir()
    np.save(folder / "index-1.npy", orders[1])
    for order, reason in (
        ([0, 1, 1], "lists class 1 2 times"),
        ([0, 1, 3], "but not class 2"),
        ([0, 1, 2], "lists 3 classes, digits has 10"),
        (np.array([0, "a"], dtype=object), "is no .npy file of whole numbers"),
    ):
        np.save(folder / "index-0.npy", order, allow_pickle=True)
        assert reason in bench.refuse(how, "")
    np.save(folder / "index-0.npy", orders[0])
    bench.load(how, "")
    study = read_study(bench.studies / "other.yaml")
    assert study.imported == "weights"
    assert study.variants["imported"].architecture == "incremental_resnet18"
    for trial in (0, 1):
        data = trial_data(study, "imported", trial)
        assert data.order is not None
        assert data.order.tolist() == orders[trial].tolist()
        same(bench.weights("imported.k002|0015"), trial, network(10 * trial + 15).state_dict())
    before = snapshot(bench.store.root, bench.studies)
    assert "nothing was changed" in bench.load("", "")
    assert snapshot(bench.store.root, bench.studies) == before
    # A further trial with an order of its own leaves the others as they are.
    np.save(folder / "index-2.npy", orders[0][::-1])
    for epoch in (0, 3, 15):
        bench.save(f"model_parameters/index-2_epoch-{epoch}.pt", network(20 + epoch).state_dict())
    bench.load("", "")
    study = read_study(bench.studies / "other.yaml")
    assert study.trials == 3
    same(bench.weights("imported.k002|0015"), 1, network(25).state_dict())
    compute_curvature(study, study.checkpoint("imported.k002|0003"), bench.store)
    np.save(folder / "index-0.npy", orders[1])
    assert "is another order of classes than that of trial 0" in bench.refuse("", "")
    np.save(folder / "index-0.npy", orders[0])
    told = bench.refuse("--classes 2,2,5", "")
    assert "first=2 add=2 every=3" in told and "first=2 add=2 every=5" in told and "FoundOrder" not in told


def test_folders_and_patterns_that_do_not_fit_are_refused(bench: _Bench, tmp_path: Path) -> None:
    state = network().state_dict()
    bench.save("a/1.pt", state)
    assert "no file is called {epoch}.pt; say how with --pattern" in bench.refuse(HOW)
    assert "no file is called index-{trial}_epoch-{epoch}.pt or" in bench.refuse(HOW, "")
    assert "--pattern {arm}.pt: say where {epoch} is" in bench.refuse(HOW, "{arm}.pt")
    bench.save("a/01.pt", state)
    assert "are both epoch 1 of trial 0 of a.k002" in bench.refuse(HOW, "{arm}/{epoch}.pt")
    (bench.files / "a/01.pt").unlink()
    bench.save("s1/2.pt", state)
    assert "files of trial 1 but none of trial 0" in bench.refuse(HOW, "s{trial}/{epoch}.pt")
    bench.save("s0/1.pt", state)
    bench.save("s0/2.pt", state)
    assert "no file of trial 1 of imported.k002|0001" in bench.refuse(HOW, "s{trial}/{epoch}.pt")
    bench.save("A/1.pt", state)
    assert "A cannot be the name of a variant" in bench.refuse(HOW, "{arm}/{epoch}.pt")
    assert "pass --architecture, --batch-size, --optimizer, --learning-rate" in bench.refuse(
        "--k 2 --dataset digits", "a/{epoch}.pt"
    )
    assert "which data set it is about is not in the files: pass --dataset" in bench.refuse(
        HOW.replace("--dataset digits", ""), "a/{epoch}.pt"
    )
    assert "does not say which k (width)" in bench.refuse(HOW.replace("--k 2", ""), "a/{epoch}.pt")
    assert "--k 0: a width is a whole number above 0" in bench.refuse(HOW.replace("--k 2", "--k 0"), "a/{epoch}.pt")
    assert "--trial -1: trials are counted from 0" in bench.refuse(f"{HOW} --trial -1", "a/{epoch}.pt")
    assert "--classes needs --class-order" in bench.refuse(f"{HOW} --classes 2,2,2", "a/{epoch}.pt")
    bench.load(HOW, "a/{epoch}.pt")
    assert "has had all classes from the beginning" in bench.refuse("--k 2 --classes 2,2,2", "a/{epoch}.pt")
    assert "learning_rate" in bench.refuse("--k 2 --learning-rate 1", "a/{epoch}.pt")
