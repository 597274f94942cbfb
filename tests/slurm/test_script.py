"""What is handed to sbatch, without SLURM: every word arrives as it was, whatever is in it."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import TINY, Lab

from dd_assets.compute.slurm.script import Submission
from dd_assets.compute.slurm.settings import SlurmSettings
from dd_core.jobs.division import divided
from dd_core.jobs.job import CheckpointTask, Job
from dd_core.machine.devices import Machine
from dd_core.study.resources import Resources

ARM = {"study": "tiny", "variant": "plain"}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Job:
    """Two arms on two machines."""
    lab = Lab(tmp_path_factory.mktemp("script") / "lab", TINY)
    return divided(lab.training_job(), Machine("cpu", 0, 1, 1, 2))


def submission(job: Job, own: dict[str, Any] | None = None, root: str = "/shared/data", **resources: Any) -> Submission:
    wanted = Resources(cpus_per_pod=1).overridden_by(Resources(**resources))
    folder = Path(root) / "jobs/name/digest"
    return Submission(
        job=job,
        settings=SlurmSettings(**(own or {})),
        resources=wanted,
        root=root,
        job_file="jobs/name/digest/job.json",
        comment=f"{folder}/job.json",
        events=folder / "events",
        logs=folder,
    )


# No NUL and no slash, of which names of files cannot be made; quotes, spaces, dollars and line breaks all the more.
NAMES = st.text(st.sampled_from("ab '\"$`\\;&|<>()*?[]!#~%\n\té"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@settings(max_examples=40)
@given(name=NAMES)
def test_paths_reach_the_pod_unchanged(job: Job, name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root, python = Path(folder) / f"{name}.root", Path(folder) / name
        root.mkdir()
        python.write_text('#!/bin/bash\nprintf "%s\\0" "$DD_ROOT" "$@"\n', encoding="utf-8")
        python.chmod(0o755)
        script = submission(job, {"python": str(python)}, str(root)).script()
        done = subprocess.run(
            ["bash", "-s"], input=script.encode(), env={"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, check=True
        )
        words = done.stdout.decode().split("\0")[:-1]
        events = f"{root}/jobs/name/digest/events/1.jsonl"
        assert words == [str(root), "-m", "dd_core.jobs.pod", "jobs/name/digest/job.json", "--events", events]
        assert done.stderr == b""


@settings(max_examples=40)
@given(name=NAMES)
def test_options_are_words_and_sbatch_replaces_nothing_in_a_path(job: Job, name: str) -> None:
    made = submission(job, root=f"/shared/{name}")
    (output,) = [option for option in made.options() if option.startswith("--output=")]
    folder = f"/shared/{name}/jobs/name/digest"
    assert output == f"--output={folder.replace('%', '%%')}/slurm-%a.log"
    assert f"--comment={folder}/job.json" in made.options()
    assert str(made.log(1)) == f"{folder}/slurm-1.log"


def test_settings_and_resources_become_options(job: Job) -> None:
    own = {
        "partition": "gpu",
        "account": "lab",
        "qos": "long",
        "constraint": "a100&nvlink",
        "reservation": "friday",
        "gres": "gpu:a100",
        "max_running": 3,
        "options": {"exclude": "n7,n8", "exclusive": True, "overcommit": False, "nice": 10},
    }
    options = submission(job, own, gpus_per_pod=8, cpus_per_pod=64, memory_gib_per_pod=0.5, hours=1.51).options()
    assert options == [
        f"--job-name={job.name}",
        "--comment=/shared/data/jobs/name/digest/job.json",
        *("--partition=gpu", "--account=lab", "--qos=long", "--constraint=a100&nvlink", "--reservation=friday"),
        *("--nodes=1", "--ntasks-per-node=1", "--cpus-per-task=64", "--gres=gpu:a100:8", "--mem=512M", "--time=91"),
        *("--array=0-1%3", "--output=/shared/data/jobs/name/digest/slurm-%a.log", "--open-mode=append"),
        *("--chdir=/shared/data/jobs/name/digest", "--requeue", "--exclude=n7,n8", "--exclusive", "--nice=10"),
    ]


def test_what_is_left_open_is_left_to_the_cluster(job: Job) -> None:
    names = {option[2:].partition("=")[0] for option in submission(job, {"requeue": False}).options()}
    assert names == {
        *("job-name", "comment", "nodes", "ntasks-per-node", "cpus-per-task", "array", "output", "open-mode"),
        *("chdir", "no-requeue"),
    }


def test_machines_that_compute_together_are_one_allocation(job: Job) -> None:
    task = CheckpointTask(kind="hessian", **ARM, k=1, epoch=8, ranks=4)
    together = job.model_copy(update={"tasks": (task,), "places": ((0,), (0,))})
    made = submission(together, gpus_per_pod=2, cpus_per_pod=8)
    assert "--nodes=2" in made.options()
    assert not any(option.startswith("--array") for option in made.options())
    assert "--output=/shared/data/jobs/name/digest/slurm.log" in made.options()
    assert "exec srun --ntasks-per-node=1 --kill-on-bad-exit=1 --cpus-per-task=8 bash -c " in made.script()
    assert 'events/"$SLURM_NODEID".jsonl' in made.script()
    subprocess.run(["bash", "-n"], input=made.script(), text=True, check=True)


def test_only_the_setup_is_taken_as_it_is_and_comes_first(job: Job) -> None:
    script = submission(job, {"setup": ("module load cuda && source ~/venv/bin/activate",)}).script()
    lines = script.splitlines()
    assert lines[0] == "#!/bin/bash"
    assert lines[2] == "module load cuda && source ~/venv/bin/activate"
    assert lines[3] == "export DD_ROOT=/shared/data"


@pytest.mark.parametrize(
    ("gpu", "options"),
    [
        (None, {"--gres=gpu:2", "--constraint=nvlink|ib"}),
        ("NVIDIA-A100-SXM4-40GB", {"--gres=gpu:a100:2", "--constraint=(nvlink|ib)&a100_40g"}),
        ("by-node", {"--gres=gpu:2", "--constraint=(nvlink|ib)&v100"}),
        ("h200", {"--gres=gpu:h200:2", "--constraint=nvlink|ib"}),
    ],
)
def test_a_product_of_gpu_is_a_type_of_gres_or_what_the_settings_make_of_it(
    job: Job, gpu: str | None, options: set[str]
) -> None:
    gpus = {
        "NVIDIA-A100-SXM4-40GB": {"gres": "gpu:a100", "constraint": "a100_40g"},
        "by-node": {"constraint": "v100"},
    }
    own = {"gpus": gpus, "constraint": "nvlink|ib"}
    given = submission(job, own, gpus_per_pod=2, gpu=gpu).options()
    assert {option for option in given if option.startswith(("--gres", "--constraint"))} == options
    on_cores = submission(job, own, gpus_per_pod=0, gpu=gpu).options()
    assert not any(option.startswith("--gres") for option in on_cores)
