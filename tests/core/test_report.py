"""What a study has found, as text: a table for each curve, one for single widths, and one number for a fall."""

import math

from dd_core.analysis.double_descent import WidthRow, find_double_descent
from dd_core.analysis.report import report, sentence
from dd_core.figures.charts.curvature_by_width import headline as curvature_title
from dd_core.figures.charts.double_descent_curve import headline as error_title
from dd_core.figures.drawing.landmarks import Widths
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.training.train import train_arm

VARIANT = {"architecture": "mlp", "batch_size": 32, "optimizer": {"name": "sgd", "learning_rate": 0.1}}


def test_variants_with_one_width_are_rows_of_one_table_and_those_not_trained_are_named(store: Store) -> None:
    study = Study.model_validate(
        {
            "name": "rows",
            "description": "made for tests",
            "data": {"dataset": "digits", "num_train": 100},
            "variants": {
                "one": {**VARIANT, "widths": (3,)},
                "another": {**VARIANT, "widths": (5,)},
                "curve": VARIANT,
                "later": VARIANT,
            },
            "widths": (1, 2),
            "trials": 2,
            "epochs": 2,
            "checkpoints": (1, 2),
        }
    )
    for arm in study.arms.values():
        if arm.variant != "later":
            train_arm(study, arm, store, 2)
    store.checkpoint_manifest_path("rows", Checkpoint(Arm("curve", 2), 2)).unlink()
    text, curves = report(store, study)
    lines = text.splitlines()
    assert lines[0] == "rows, curve, epoch 1:", "the last that both widths have"
    assert [row.k for row in curves["curve"]] == [1, 2]
    assert "later: nothing trained yet" in lines
    table = lines[lines.index("rows, epoch 2:") + 1 :]
    assert len({line.rindex("%") for line in table[1:]}) == 1, "columns are aligned"
    assert [line.split()[:2] for line in table[1:]] == [["one", "3"], ["another", "5"]]
    assert f"{100 * curves['one'][0].test_error:.1f} %" in table[1]


def test_sentence_and_titles_tell_the_same_fall_that_to_the_widest() -> None:
    """Not that to whichever network beyond the peak happens to be best: here k = 12."""
    errors = {1: 0.216, 2: 0.109, 4: 0.207, 12: 0.0876, 16: 0.144}
    traces = {1: 4.0, 2: 9.0, 4: 21.2, 12: 0.05, 16: 0.128}
    found = find_double_descent(
        [WidthRow(k, 2, 0.1, math.nan, errors[k], math.nan, math.nan, traces[k]) for k in errors]
    )
    assert found is not None and (found.peak.k, found.widest.k) == (4, 16)
    told, widths = sentence(found, 2), Widths({}, errors)
    title = error_title(widths, "")
    assert all(words in text for text in (told, title) for words in ("20.7 % at k = 4", "again to 14.4 % at k = 16"))
    rows = [{"k": k, "trace": trace, "subset": "all", "statistic": "mean"} for k, trace in traces.items()]
    assert all("falls 166-fold to k = 16" in text for text in (told, curvature_title(rows, widths, "images")))
