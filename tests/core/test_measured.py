"""What a study asks to be measured only after it was trained is found from the manifests."""

from typing import Any

import pytest

from dd_core.store.provenance import trained_checkpoints
from dd_core.store.store import Store
from dd_core.study.measured import asked_later
from dd_core.training.train import train_arm

_SPARSE = {"evaluation": {"every": 4, "image_progress": "checkpoints"}, "monitors": {"hessian": None}}


@pytest.mark.parametrize(
    ("changes", "sentences"),
    [
        (_SPARSE, []),
        ({**_SPARSE, "evaluation": {"every": 8, "image_progress": "checkpoints"}}, []),  # a part of what is there
        (
            {**_SPARSE, "evaluation": {"every": 2, "image_progress": "checkpoints"}},
            ["evaluations every 2 epochs (trained with every 4 epochs)"],
        ),
        (
            {**_SPARSE, "evaluation": {"every": 4}},
            ["values of single images at every evaluation (trained with those at checkpoints)"],
        ),
        ({**_SPARSE, "monitors": {}}, ["the monitor hessian (trained without it)"]),
        (
            {**_SPARSE, "monitors": {"hessian": None, "norms": {"every": "1 steps"}}},
            ["the monitor norms with every 1 steps (trained with 1/4 epoch)"],
        ),
        ({**_SPARSE, "monitors": {"hessian": None, "norms": None}}, []),
    ],
)
def test_what_was_asked_for_too_late_is_said(
    changes: dict[str, Any], sentences: list[str], store: Store, make_study: Any
) -> None:
    trained = make_study({"architecture": "cnn5"}, **_SPARSE, trials=1)
    train_arm(trained, trained.arms["plain.k001"], store, until=2)
    study = make_study({"architecture": "cnn5"}, **changes, trials=1)
    found = trained_checkpoints(store, study)  # the recipe is the same
    assert [asked_later(manifest.measured, study) for manifest in found.values()] == [sentences] * 2
    assert all("measured" in manifest.content for manifest in found.values())
    assert asked_later(None, study) == []
