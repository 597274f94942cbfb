"""A disk that fills up while a command runs, and the same command when there is room again."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from support import ONE_CORE, REPOSITORY, Lab, Result, results

# A small file system of its own, seen by these processes alone and gone with them.
SCRIPT = """
disk_with_room_for() {
  mount -t tmpfs -o size=16m tmpfs "$DD_ROOT" && head -c $((16 * 1024 * 1024 - $1)) /dev/zero > "$DD_ROOT/filler"
}
train() {
  dagster asset materialize --select tiny/checkpoints --partition-range 'plain.k001|0000...plain.k002|0024' \
    > "$OUT/$1.log" 2>&1
  echo $? > "$OUT/$1.code"
}
disk_with_room_for 900000 || exit 77
source ./env.sh
train full
rm "$DD_ROOT/filler"
cp -r "$DD_ROOT" "$OUT/full"
train freed
cp -r "$DD_ROOT" "$OUT/freed"
disk_with_room_for 1500000
unset DAGSTER_HOME
source ./env.sh
train together
"""


@dataclass
class Outcome:
    """What the command printed and left behind on the full disk and, run again, on the freed one.

    And what it printed where Dagster's records lie on the full disk as well, as they do by default.
    """

    lab: Lab
    out: Path

    def result(self, name: str) -> Result:
        """Of the command on the ``full`` or the ``freed`` disk, or where all is ``together``."""
        code = int((self.out / f"{name}.code").read_text(encoding="ascii"))
        return Result(code, (self.out / f"{name}.log").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    lab = Lab(tmp_path_factory.mktemp("disk") / "lab")
    out = lab.folder / "out"
    out.mkdir()
    lab.root.mkdir()
    private = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    if shutil.which("unshare") is None:
        code, complaint = 77, "there is no unshare"
    else:
        environment = lab.environment(OUT=out)
        done = subprocess.run(
            [*ONE_CORE, *private, "bash", "-c", SCRIPT],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        code, complaint = done.returncode, done.stderr
    if code and not list(out.iterdir()) and not os.environ.get("CI"):
        pytest.skip(f"a small file system cannot be mounted here: {complaint}")
    assert code == 0, complaint
    return Outcome(lab, out)


def test_a_full_disk_ends_the_command_with_one_sentence(outcome: Outcome) -> None:
    outcome.result("full").refused("arms did not finish (tiny/plain.k00")
    outcome.result("full").refused("the disk is full: ")
    outcome.result("together").refused("the disk is full: ")


def test_nothing_half_written_is_visible_on_a_full_disk(outcome: Outcome) -> None:
    moved = Lab(outcome.lab.folder / "moved")
    shutil.copytree(outcome.out / "full", moved.root)
    manifests = list(moved.root.glob("checkpoints/**/*.json"))
    assert 0 < len(manifests) < 8
    for path in manifests:
        manifest = moved.store.read_manifest(path)
        assert manifest is not None
        for entry in manifest.files.values():
            moved.store.verify(entry)
    assert list(moved.root.glob("**/.*.tmp")) == []


def test_when_there_is_room_again_the_same_command_ends_with_the_same_bits(
    outcome: Outcome, expected_training: dict[str, str]
) -> None:
    outcome.result("freed").succeeded()
    assert results(outcome.out / "freed") == expected_training
    assert len(outcome.lab.recorded("checkpoints")) == 8
