"""What the asset checks of a study say of results that are not all there."""

import dagster as dg

from dd_assets.assets.checks import check_checkpoints
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study


def test_an_arm_counts_as_trained_when_it_has_its_last_checkpoint(trained: Store, tiny_study: Study) -> None:
    """As after a run whose worker died: the checkpoints before are there, and their metrics are whole."""

    def said() -> tuple[bool, str, str]:
        _, metrics = check_checkpoints(trained, tiny_study, dg.AssetKey(["tiny", "checkpoints"]))
        facts = metrics.metadata
        return bool(metrics.passed), str(facts["arms_trained"].value), str(facts["checkpoints_trained"].value)

    assert said() == (True, "2 of 2", "6 of 6")
    last = trained.checkpoint_path("tiny", Checkpoint(Arm("plain", 2), 4))
    last.with_suffix(".json").unlink()
    assert said() == (True, "1 of 2", "5 of 6")
