"""Told to take less at a time, a process does so from the beginning; the mathematics stays the same."""

from collections.abc import Iterator

import pytest

from dd_core.errors import UserError
from dd_core.machine import memory
from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.tables.files import read_parquet
from dd_core.training.train import train_arm


@pytest.fixture(autouse=True)
def _as_usual_afterwards() -> Iterator[None]:
    yield
    memory.set_halvings(0)


def test_blocks_begin_smaller_but_never_with_nothing() -> None:
    memory.set_halvings(2)
    assert [*memory.in_blocks(lambda start, stop, size: (start, stop, size), 10, 16)] == [
        *((0, 4, 4), (4, 8, 4), (8, 10, 4))
    ]
    assert memory.begin_with(3) == 1
    with pytest.raises(UserError, match="at least one example, not 0"):
        list(memory.in_blocks(lambda *_: None, 10, 0))


def test_training_begins_with_part_of_a_batch_and_says_so(make_study, store: Store) -> None:  # type: ignore[no-untyped-def]
    study: Study = make_study({"batch_size": 50})
    arm = study.arms["plain.k001"]
    recorded = []
    for halvings, stores in ((0, Store(store.root / "whole")), (1, Store(store.root / "parts")), (9, store)):
        memory.set_halvings(halvings)
        train_arm(study, arm, stores, until=2)
        (run,) = stores.table_folder("runs", "tiny", arm.key).glob("*end*.parquet")
        evaluation = read_parquet(stores.table_folder("training_evals", "tiny", arm.key) / "0002.parquet")
        recorded.append((read_parquet(run)["micro_batch_size"][0].as_py(), evaluation["train_loss"].to_pylist()))
    assert [size for size, _ in recorded] == [50, 25, 16], "never fewer than BatchNorm can do with"
    # BatchNorm sees other statistics in parts of a batch; two epochs on, the loss is the same but for a percent.
    for _, losses in recorded[1:]:
        assert losses == pytest.approx(recorded[0][1], rel=0.05)
        assert losses != recorded[0][1]
