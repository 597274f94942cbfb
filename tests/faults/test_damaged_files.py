"""Files that are truncated, altered or of another recipe: recomputed or refused with the reason, never used."""

import contextlib
import json
import multiprocessing
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support import TINY, Lab, Worker, results, stamps, work

from dd_core.jobs.job import Job
from dd_core.store.retirement import retire
from dd_core.store.store import Store
from dd_core.tables.files import read_parquet
from dd_core.tables.warehouse import connect

ARM = "plain.k002"
WEIGHTS = f"checkpoints/tiny/{ARM}/0016.safetensors"


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], None]] = {"truncated": truncate, "one_bit_flipped": flip_a_bit}
damages = pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)


def notes(events: list[dict[str, str]]) -> str:
    return " ".join(event.text for event in events if event.name == "note")


def of_arm(digests: dict[str, str]) -> dict[str, str]:
    return {path: digest for path, digest in digests.items() if ARM in path}


@damages
def test_curvature_refuses_damaged_weights(damage: Callable[[Path], None], trained: Lab) -> None:
    damage(trained.root / WEIGHTS)
    before = stamps(trained.root, "tables/per_image_curvature/**/*.*")
    worker = Worker(
        trained,
        trained.curvature_job(),
    )
    assert worker.end() == 1
    failed = {event.task: event.error for event in worker.log if event.name == "failed"}
    assert set(failed) == {f"tiny/{ARM}|0016"}
    assert f"{trained.root / WEIGHTS} is damaged" in failed[f"tiny/{ARM}|0016"]
    assert stamps(trained.root, "tables/per_image_curvature/**/*.*") == before


@damages
@pytest.mark.parametrize("file", [WEIGHTS, f"tables/training_evals/study=tiny/arm={ARM}/0008.parquet"])
def test_training_repairs_damaged_results_and_says_why(
    file: str, damage: Callable[[Path], None], trained: Lab, expected: dict[str, str]
) -> None:
    damage(trained.root / file)
    log = work(trained, trained.training_job(ARM))
    assert f"{ARM}: training from the beginning, because {trained.root / file} is damaged" in notes(log)
    assert results(trained.root) == expected


def test_a_manifest_that_is_cut_off_makes_its_checkpoint_not_exist(trained: Lab, expected: dict[str, str]) -> None:
    manifest = (trained.root / WEIGHTS).with_suffix(".json")
    truncate(manifest)
    worker = Worker(
        trained,
        trained.curvature_job(),
    )
    assert worker.end() == 1
    assert f"{manifest} is damaged, so" in next(event.error for event in worker.log if event.name == "failed")
    work(trained, trained.training_job(ARM))
    assert results(trained.root) == expected


def unfinished(lab: Lab) -> Job:
    """Train the arm to epoch 16 and return the job that trains it to the end."""
    job = lab.training_job(ARM)
    work(lab, job.model_copy(update={"tasks": (job.tasks[0].model_copy(update={"until": 16}),)}))
    return job


def first_epochs(lab: Lab) -> list[int]:
    files = sorted(lab.store.table_folder("runs", "tiny", ARM).glob("*.start.parquet"))
    return [read_parquet(path)["first_epoch"][0].as_py() for path in files]


def test_training_goes_on_from_the_resume_point(lab: Lab, expected_training: dict[str, str]) -> None:
    log = work(lab, unfinished(lab))
    assert notes(log) == ""
    assert first_epochs(lab) == [0, 16]
    assert results(lab.root) == of_arm(expected_training)


@damages
def test_a_damaged_resume_point_is_not_used(
    damage: Callable[[Path], None], lab: Lab, expected_training: dict[str, str]
) -> None:
    job = unfinished(lab)
    damage(lab.store.resume_path("tiny", ARM))
    assert f"{ARM}: training from the beginning, because" in notes(work(lab, job))
    assert first_epochs(lab) == [0, 0]
    assert results(lab.root) == of_arm(expected_training)


def edit_recipe(lab: Lab) -> None:
    lab.write_study("tiny", TINY.replace("learning_rate: 2.0e-3", "learning_rate: 1.0e-3"))


def test_weights_of_another_recipe_are_refused(trained: Lab) -> None:
    edit_recipe(trained)
    before = stamps(trained.root, "tables/**/*.*")
    arguments = ("asset", "materialize", "--select")
    refused = trained.dagster(*arguments, "tiny/per_image_curvature", "--partition", f"{ARM}|0016")
    refused.refused(f"checkpoint {ARM}|0016 of tiny was trained with another recipe")
    trained.forked_dagster(*arguments, "curvature").refused("the recipe in the study file has changed")
    assert stamps(trained.root, "tables/**/*.*") == before


def test_results_of_an_earlier_recipe_are_set_aside_and_replaced(
    trained: Lab, lab: Lab, tmp_path: Path, expected: dict[str, str]
) -> None:
    fresh = Lab(tmp_path / "fresh")
    edit_recipe(fresh)
    work(fresh, fresh.training_job(ARM))
    edit_recipe(trained)
    log = work(trained, trained.training_job(ARM))
    old = next((trained.root / "retired/tiny" / ARM).iterdir())
    assert f"its recipe has changed; the old results lie in {old}" in notes(log)
    assert of_arm(results(trained.root)) == results(fresh.root)
    assert results(old) == of_arm(expected), "the old results are kept as they were"


def retire_and_die(root: Path, study: str, recipe: str, folders: int) -> None:
    """Retire the arm in a process that is killed when so many of its folders have been moved."""
    usual = Path.rename
    moved = []

    def rename(self: Path, target: Path) -> Path:
        if len(moved) == folders:
            os.kill(os.getpid(), signal.SIGKILL)
        moved.append(self)
        return usual(self, target)

    Path.rename = rename  # type: ignore[method-assign,assignment]
    retire(Store(root), study, ARM, recipe)


@pytest.mark.parametrize("folders", [1, 5])
def test_setting_aside_that_was_killed_is_completed(folders: int, trained: Lab, expected: dict[str, str]) -> None:
    recipe = trained.study.recipe_hash(trained.study.arms[ARM])
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=retire_and_die, args=(trained.root, "tiny", recipe, folders))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    edit_recipe(trained)
    work(trained, trained.training_job(ARM))
    recipes = {
        value
        for path in trained.root.glob(f"tables/*/*/arm={ARM}/*.parquet")
        for value in read_parquet(path)["recipe"].to_pylist()
    }
    assert recipes == {trained.study.recipe_hash(trained.study.arms[ARM])}
    assert results(trained.root / "retired/tiny" / ARM / recipe) == of_arm(expected)


@damages
def test_damaged_curvature_is_computed_again(
    damage: Callable[[Path], None], trained: Lab, expected: dict[str, str]
) -> None:
    file = trained.store.table_folder("per_image_curvature", "tiny", ARM) / "0016.parquet"
    damage(file)
    work(
        trained,
        trained.curvature_job(),
    )
    assert results(trained.root) == expected


def test_the_driver_computes_harmed_curvature_again(trained: Lab, expected: dict[str, str]) -> None:
    folder = trained.store.table_folder("per_image_curvature", "tiny", ARM)
    for epoch, damage in (("0008", truncate), ("0016", flip_a_bit), ("0024", Path.unlink)):
        damage(folder / f"{epoch}.parquet")
    done = trained.forked_dagster("asset", "materialize", "--select", "curvature").succeeded()
    assert "8 trained checkpoints, 3 without a current result: curvature" in done.output
    digests = results(trained.root)
    assert {path: digests[path] for path in expected} == expected


def test_tables_and_figures_name_what_is_lost_or_damaged_and_go_without_it(trained: Lab) -> None:
    lost = trained.store.table_folder("training_evals", "tiny", ARM) / "0016.parquet"
    lost.unlink()
    harmed = trained.store.table_folder("training_evals", "tiny", "plain.k001") / "0008.parquet"
    flip_a_bit(harmed)
    for select in ("training_evals", "double_descent_curve"):
        done = trained.forked_dagster("asset", "materialize", "--select", select).succeeded()
        said = " ".join(done.output.split())
        assert f"{ARM}|0016 of tiny is trained but has no rows: {lost} is gone; run: dagster asset" in said
        assert f"{harmed} is damaged" in said
        assert f"--select 'tiny/checkpoints' --partition '{ARM}|0016'" in said
    with contextlib.closing(connect(trained.store)) as connection:
        found = connection.execute("SELECT arm, list(DISTINCT epoch ORDER BY epoch) FROM training_evals GROUP BY arm")
        assert sorted(found.fetchall()) == [
            ("plain.k001", [0, 12, 16, 20, 24]),
            (ARM, [0, 4, 8, 20, 24]),
        ]


def test_a_data_root_of_an_earlier_version_is_brought_up_to_date(trained: Lab, expected: dict[str, str]) -> None:
    """There manifests lay beside the files of tables, and said nothing of themselves."""
    manifests = trained.root / "manifests"
    for path in sorted((manifests / "per_image_curvature").rglob("*.json")):
        content = json.loads(path.read_text())
        del content["manifest"]
        (trained.root / "tables" / path.relative_to(manifests)).write_text(json.dumps(content))
    shutil.rmtree(manifests)
    before = stamps(trained.root, "tables/per_image_curvature/**/*.parquet")
    done = trained.forked_dagster("asset", "materialize", "--select", "curvature").succeeded()
    assert "8 trained checkpoints, 0 without a current result: curvature" in done.output
    assert stamps(trained.root, "tables/per_image_curvature/study=tiny/**/*.parquet") == before
    assert not list(trained.root.glob("tables/**/*.json"))
