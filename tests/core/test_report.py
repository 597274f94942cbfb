"""What a study has found, as text: a table for each variant's curve, and one for variants with a single width."""

from dd_core.analysis.report import report
from dd_core.store.store import Store
from dd_core.study.study import Study
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
            "epochs": 1,
            "checkpoints": (1,),
        }
    )
    for arm in study.arms.values():
        if arm.variant != "later":
            train_arm(study, arm, store, 1)
    text, curves = report(store, study)
    lines = text.splitlines()
    assert lines[0] == "rows, curve, epoch 1:"
    assert "later: nothing trained yet" in lines
    table = lines[lines.index("rows, epoch 1:") + 1 :]
    assert len({line.rindex("%") for line in table[1:]}) == 1, "columns are aligned"
    assert [line.split()[:2] for line in table[1:]] == [["one", "3"], ["another", "5"]]
    assert f"{100 * curves['one'][0].test_error:.1f} %" in table[1]
