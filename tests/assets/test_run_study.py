"""A whole study by whoever has no checkout, and so no env.sh, but an installed package."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import PATIENCE, REPOSITORY, TINY, Lab, Result

SMALL = TINY.replace("[1, 2]", "[1]").replace("epochs: 24", "epochs: 2").replace("[0, 8, 16, 24]", "[0, 2]")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path / "lab", SMALL)


def test_a_study_runs_from_the_package_alone_without_env_sh(lab: Lab) -> None:
    source = lab.folder / "site-packages"  # what a wheel holds, and nothing beside it
    for package in ("dd_core", "dd_assets"):
        shutil.copytree(REPOSITORY / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(lab.folder),
        "PYTHONPATH": str(source),
        "DD_ROOT": "results",
        "DD_STUDIES": str(lab.studies),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "dd_assets.run_study", "tiny"],
        cwd=lab.folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=3 * PATIENCE,
        check=False,
    )
    Result(done.returncode, done.stdout).succeeded()
    assert "SupersessionWarning" not in done.stdout
    results = lab.folder / "results"
    assert (results / "checkpoints/tiny/plain.k001/0002.safetensors").is_file()
    assert (results / "figures/training_curves/tiny.html").is_file()
    assert (results / "dagster/dagster.yaml").is_file(), "the runs are recorded where the UI looks"
    assert list((results / "dagster/history").glob("*.db"))
