"""Dagster's folder: made once by whoever comes first, mended where two have made it, and renewed where it is ours."""

import contextlib
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from support import REPOSITORY, Lab

SETTINGS = REPOSITORY / "dd_assets" / "dagster.yaml"
ROUNDS, RACERS = 6, 3
RACE = """
import os, pathlib, sys, time
from dagster import DagsterInstance
folder, name = pathlib.Path(sys.argv[1]), sys.argv[2]
for number in range(int(sys.argv[3])):
    home = folder / f"home-{number}"
    os.environ["DAGSTER_HOME"] = str(home)
    (home / f"ready-{name}").touch()
    while len(list(home.glob("ready-*"))) < int(sys.argv[4]):
        time.sleep(0.001)
    with DagsterInstance.get() as instance:
        assert instance.get_runs() == []
"""


def versions(home: Path) -> dict[str, list[str]]:
    """The schema of each of Dagster's files."""
    found = {}
    for name in ("history/runs.db", "history/runs/index.db", "schedules/schedules.db"):
        with contextlib.closing(sqlite3.connect(home / name)) as connection:
            found[name] = [version for (version,) in connection.execute("SELECT version_num FROM alembic_version")]
    return found


def test_first_commands_side_by_side_make_one_folder(tmp_path: Path) -> None:
    """Without the lock about one folder in three has two versions, or an old one, after a round."""
    homes = [tmp_path / f"home-{number}" for number in range(ROUNDS)]
    for home in homes:
        home.mkdir()
        shutil.copy(SETTINGS, home)
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path), name, str(ROUNDS), str(RACERS)], cwd=REPOSITORY)
        for name in "abc"
    ]
    assert [racer.wait(120) for racer in racers] == [0] * RACERS
    (made,) = {str(versions(home)) for home in homes}
    assert all(len(found) == 1 for found in versions(homes[0]).values()), made


def test_a_folder_with_two_versions_is_mended(lab: Lab) -> None:
    lab.shell("source ./env.sh && python -m dd_assets.running.instance").succeeded()
    right = versions(lab.home)
    for name in right:
        with contextlib.closing(sqlite3.connect(lab.home / name)) as connection, connection:
            connection.execute("INSERT INTO alembic_version VALUES ('5771160a95ad')")
    lab.materialize("curvature").refused("nothing asked for is trained yet")
    assert versions(lab.home) == right


@pytest.mark.parametrize("is_changed", [False, True])
def test_settings_of_an_earlier_version_are_renewed_unless_they_were_changed(lab: Lab, is_changed: bool) -> None:
    earlier = subprocess.run(
        ["git", "show", "a21a984:dd_assets/dagster.yaml"], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    if earlier.returncode:
        pytest.skip("the history of the repository is not here")
    lab.home.mkdir()
    copy = lab.home / "dagster.yaml"
    copy.write_text(earlier.stdout + "# mine\n" * is_changed, encoding="utf-8")
    lab.shell("source ./env.sh").succeeded()
    assert (copy.read_text(encoding="utf-8") == SETTINGS.read_text(encoding="utf-8")) is not is_changed


def test_a_run_that_does_not_say_where_it_is_can_be_ended_by_hand(lab: Lab) -> None:
    import dagster as dg

    prepare = "source ./env.sh && python -m dd_assets.running.instance"
    lab.shell(prepare).succeeded()
    with lab.instance() as instance:
        run_id = instance.add_run(dg.DagsterRun("x", status=dg.DagsterRunStatus.STARTED)).run_id
    command = f"python -m dd_assets.running.instance end {run_id}"
    assert command in lab.shell(prepare).succeeded().output
    lab.shell(f"source ./env.sh && {command}").succeeded()
    lab.shell(f"source ./env.sh && {command}").refused(f"there is no run {run_id} under way")
    assert run_id not in lab.shell(prepare).succeeded().output
