"""Laboratories, and the undisturbed run that every disturbed one must equal."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import Lab, results

from dd_core.jobs.job import Job


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """Nothing is trained in it."""
    return Lab(tmp_path / "lab")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """All of ``tiny`` trained, and its curvature computed, by workers as they are started outside tests."""
    lab = Lab(tmp_path_factory.mktemp("undisturbed") / "lab")
    training, curvature = (
        lab.training_job(),
        lab.curvature_job(),
    )
    both = Job(
        root=lab.root, studies=training.studies, tasks=training.tasks + curvature.tasks, num_workers=1, threads=1
    )
    path = lab.folder / "job.json"
    path.write_text(both.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "dd_core.jobs.worker", str(path), "--tasks", *map(str, range(len(both.tasks)))]
    subprocess.run(command, env=lab.environment(OMP_NUM_THREADS=1), check=True, capture_output=True)
    return lab


@pytest.fixture(scope="session")
def expected(undisturbed: Lab) -> dict[str, str]:
    """Digests of the undisturbed results."""
    digests = results(undisturbed.root)
    assert len(digests) == 2 * (4 + 3 + 4 + 3 + 4 + 4)  # arms x (weights, batches, evals, monitors, images, curvature)
    return digests


@pytest.fixture(scope="session")
def expected_training(expected: dict[str, str]) -> dict[str, str]:
    """The same without curvature."""
    return {path: digest for path, digest in expected.items() if "per_image_curvature" not in path}


@pytest.fixture
def trained(undisturbed: Lab, lab: Lab) -> Lab:
    """A copy of the undisturbed results, to be damaged."""
    shutil.copytree(undisturbed.root, lab.root)
    return lab
