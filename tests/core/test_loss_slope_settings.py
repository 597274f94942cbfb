"""What a study file may say under loss_slopes."""

from pathlib import Path

import pytest

from dd_core.errors import StudyError
from dd_core.study.files import read_study

STUDY = """\
description: for its loss slopes
data: {dataset: digits, num_train: 100}
variants: {plain: {architecture: mlp, batch_size: 50, optimizer: {name: sgd, learning_rate: 0.1}}}
widths: [1]
trials: 1
epochs: 20
checkpoints: [20]
loss_slopes: SETTINGS
"""

BAD = {
    "{early: [15, 5]}": "loss_slopes.early: a window ends after it begins, not [15.0, 5.0]",
    "{early: [5, 5]}": "loss_slopes.early: a window ends after it begins, not [5.0, 5.0]",
    "{early: [-1, 5]}": "loss_slopes.early.0: Input should be greater than or equal to 0 (got -1)",
    "{early: 5}": "loss_slopes.early: ",
    "{starts: [5]}": "loss_slopes.starts: ",
    "{scan_starts: []}": "loss_slopes.scan_starts: ",
    "{scan_stops: [ten]}": "loss_slopes.scan_stops.0: Input should be a valid number",
    "{points: some}": "loss_slopes.points: Input should be 'log_spaced' or 'all' (got 'some')",
    "{num_points: 3}": "loss_slopes.num_points: Input should be greater than or equal to 20 (got 3)",
    "{standard_error: none}": "loss_slopes.standard_error: Input should be 'newey_west', 'block_bootstrap' or",
    "{knee: early}": "loss_slopes.knee: Input should be 'aic', 'loss' or 'break' (got 'early')",
    "{plateau: never}": "loss_slopes.plateau: Input should be 'relative_change' or 'pelt' (got 'never')",
    "{burn_in_loss: 0}": "loss_slopes.burn_in_loss: Input should be greater than 0 (got 0)",
    "{straight_r_squared: 98}": "loss_slopes.straight_r_squared: Input should be less than 1 (got 98)",
    "{straight_shares: [0.8, 90]}": "loss_slopes.straight_shares.1: Input should be less than 1 (got 90)",
    "{bootstrap_samples: 10}": "loss_slopes.bootstrap_samples: Input should be greater than or equal to 100 (got 10)",
    "{smooth_break: maybe}": "loss_slopes.smooth_break: Input should be a valid boolean",
    "{windows: [1, 2]}": "loss_slopes.windows: ",
    "[1]": "loss_slopes: ",
}


def write(folder: Path, settings: str) -> Path:
    path = folder / "slopes.yaml"
    path.write_text(STUDY.replace("SETTINGS", settings), encoding="utf-8")
    return path


@pytest.mark.parametrize("settings", BAD)
def test_a_bad_value_is_refused_with_the_path_of_its_key(settings: str, tmp_path: Path) -> None:
    path = write(tmp_path, settings)
    with pytest.raises(StudyError) as refused:
        read_study(path)
    assert f"{path}: {BAD[settings]}" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_settings_change_no_recipe(tmp_path: Path) -> None:
    usual = read_study(write(tmp_path, "{}"))
    other = read_study(write(tmp_path, "{early: [2, 4], points: all, knee: aic, standard_error: block_bootstrap}"))
    assert other.loss_slopes.early == (2.0, 4.0)
    assert [usual.recipe_hash(arm) for arm in usual.arms.values()] == [
        other.recipe_hash(arm) for arm in other.arms.values()
    ]
