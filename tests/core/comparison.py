"""Results of two trainings compared: weights bit for bit, tables value for value."""

from typing import Any

import pandas as pd
import pyarrow as pa
import torch

from dd_core.events import Event
from dd_core.store.checkpoints import load_checkpoint
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study
from dd_core.tables.files import read_parquet
from dd_core.training.recorder import METRIC_TABLES

ARM = Arm("plain", 2)


class Killed(BaseException):
    """Stands for the end of the process."""


def killer(event: str, epoch: int) -> Any:
    def report(news: Event) -> None:
        if news.name == event and news.epoch == epoch:
            raise Killed

    return report


def table(store: Store, study: Study, arm: Arm, name: str) -> pd.DataFrame:
    """All files of an arm's part of a table, in their order."""
    paths = sorted(store.table_folder(name, study.name, arm.key).glob("*.parquet"))
    return pa.concat_tables([read_parquet(path) for path in paths]).to_pandas() if paths else pd.DataFrame()


def assert_same_results(store: Store, other: Store, study: Study, arm: Arm = ARM, epochs: Any = (0, 2, 4)) -> None:
    """Weights bit for bit; tables value for value (but the time), in the same order within each file's trials."""
    for epoch in epochs:
        ours, _ = load_checkpoint(store, study, Checkpoint(arm, epoch))
        theirs, _ = load_checkpoint(other, study, Checkpoint(arm, epoch))
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            assert torch.equal(tensor, theirs[name]), name
    for name in METRIC_TABLES:
        if name == "class_progress" and study.data.classes is None:
            assert not len(table(store, study, arm, name))
            continue
        own = {"training_batches": ["step"], "training_monitors": ["metric", "step"], "image_progress": ["image_id"]}
        own["class_progress"] = ["split", "class_rank"]
        keys = ["trial", "epoch", *own.get(name, [])]
        ours_, theirs_ = (
            table(s, study, arm, name).sort_values(keys, ignore_index=True).drop(columns="time", errors="ignore")
            for s in (store, other)
        )
        assert len(ours_), name
        assert not ours_.duplicated(keys).any(), name
        pd.testing.assert_frame_equal(ours_, theirs_, check_exact=True, check_categorical=False, obj=name)
