"""What a study asks for only after it was trained is said when its checkpoints are asked for, before anything else."""

from typing import Any

from dd_assets.assets.training import _asked_later
from dd_core.store.store import Store
from dd_core.training.train import train_arm


def test_the_warning_names_what_was_not_measured_of_which_arms(store: Store, make_study: Any) -> None:
    sparse = {"evaluation": {"every": 2}, "monitors": {"hessian": None, "noise": None}}
    trained = make_study({"architecture": "cnn5"}, trials=1, **sparse)
    for arm, until in zip(trained.arms.values(), (2, 4), strict=True):
        train_arm(trained, arm, store, until=until)
    arms = set(trained.arms.values())
    assert _asked_later(store, trained, arms) == []
    dense = make_study({"architecture": "cnn5"}, trials=1, monitors={"hessian": None})
    missing = "this is not there for what is trained: plain.k001 up to epoch 2, plain.k002 up to epoch 4; to have it,"
    assert [sentence.partition(" train under")[0] for sentence in _asked_later(store, dense, arms)] == [
        f"tiny now asks for evaluations every epoch (trained with every 2 epochs); {missing}",
        f"tiny now asks for the monitor noise (trained without it); {missing}",
    ]
