"""The file that ``DD_SLURM`` names: what is wrong in it is said with its key; and what a job gets on a cluster."""

from pathlib import Path

import pytest

from dd_assets.compute import place_called
from dd_assets.compute.slurm.place import SlurmPlace
from dd_assets.compute.slurm.settings import SlurmSettings, read_settings
from dd_core.errors import UserError
from dd_core.machine.devices import Machine
from dd_core.study.resources import Resources


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("partitoin: gpu\n", "partitoin: there is no such key; did you mean 'partition'?"),
        ("partition: 7\n", "partition: Input should be a valid string (got 7)"),
        ("resources: {gpus: 8}\n", "resources.gpus: there is no such key"),
        ("resources: {pods: 0}\n", "resources.pods: Input should be greater than or equal to 1 (got 0)"),
        ("poll_seconds: 0\n", "poll_seconds: Input should be greater than 0 (got 0)"),
        ("poll_seconds: .nan\n", "poll_seconds: Input should be a finite number (got nan)"),
        ("gres: 'gpu --wrap=x'\n", "gres: String should match pattern"),
        ("options: {array: 0-3}\n", "options: array is set by the platform itself"),
        ("options: {partition: gpu}\n", "options: partition has a key of its own, beside options"),
        ("options: {--exclude: n1}\n", "options: '--exclude' is no long option of sbatch; write exclude"),
        ('setup: ["a\\nb"]\n', "setup: each entry is one line"),
        ("setup: module load cuda\n", "setup: Input should be a valid array (got 'module load cuda')"),
        ("logs: here\n", "logs: must be an absolute path, the same on every node"),
        ("partition: [\n", "not valid YAML"),
        ("- partition\n", "is a mapping of keys to values"),
        ("account: 2026-01-01\n", "only numbers, text, lists and mappings belong in"),
    ],
)
def test_a_wrong_key_is_named(text: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "slurm.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_settings(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DD_SLURM", str(tmp_path / "none.yaml"))
    with pytest.raises(UserError, match=r"none.yaml: cannot be read \(No such file"):
        place_called("slurm")


def test_without_a_file_everything_is_as_the_cluster_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DD_SLURM", raising=False)
    place = place_called("slurm")
    assert isinstance(place, SlurmPlace)
    assert place.settings == SlurmSettings()
    assert place.machine() == Machine("an unknown GPU", 1, 4, None, 1)


@pytest.mark.parametrize(
    ("own", "asked", "machine"),
    [
        (Resources(pods=2, gpus_per_pod=8), None, Machine("NVIDIA H200", 8, 32, None, 2)),
        (Resources(pods=2, gpus_per_pod=8), Resources(pods=5), Machine("NVIDIA H200", 8, 32, None, 5)),
        (Resources(gpus_per_pod=8, cpus_per_pod=16), Resources(gpus_per_pod=2), Machine("NVIDIA H200", 2, 16)),
        (Resources(gpus_per_pod=0, workers_per_pod=6), None, Machine("cpu", 0, 6, 6)),
        (Resources(gpus_per_pod=0), None, Machine("cpu", 0, 1)),
    ],
)
def test_a_study_overrides_the_cluster_and_cores_follow(own: Resources, asked: Resources, machine: Machine) -> None:
    assert SlurmPlace(SlurmSettings(resources=own, device="NVIDIA H200")).machine(asked) == machine
