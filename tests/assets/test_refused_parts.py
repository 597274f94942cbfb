"""What one part of a job is refused keeps no other part from being done."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from dd_assets.steps import checkpoint_results
from dd_assets.steps.checkpoint_results import CheckpointResult
from dd_assets.steps.follow import Outcome
from dd_core.errors import UserError
from dd_core.jobs.job import Job
from dd_core.machine.devices import Machine
from dd_core.store.store import Store
from dd_core.study.resources import Resources
from dd_core.study.study import Study
from dd_core.tables.kinds import PER_IMAGE_CURVATURE

SENTENCE = "this cluster has no such GPU"


@pytest.mark.parametrize("cause", [None, ValueError(), KeyboardInterrupt()], ids=["refused", "error", "interrupted"])
def test_a_product_that_is_not_to_be_had_fails_its_own_study_alone(
    cause: BaseException | None, tiny_study: Study, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    dear = tiny_study.model_copy(update={"name": "dear", "resources": Resources(gpu="NVIDIA-H200")})
    work = [(study, c) for study in (dear, tiny_study) for c in list(tiny_study.iter_checkpoints())[:2]]
    done: list[str] = []

    def follow(context: Any, laboratory: Any, job: Job, on_event: Any) -> Outcome:
        if job.resources:
            raise UserError(SENTENCE) from cause
        done.extend(task.name for task in job.tasks)
        return Outcome(finished=dict.fromkeys(done, 1.0))

    weights = [SimpleNamespace(live_trials=[0])] * len(work)
    monkeypatch.setattr(checkpoint_results, "_weights", lambda store, work: weights)
    monkeypatch.setattr(checkpoint_results, "follow", follow)
    laboratory: Any = SimpleNamespace(machine=lambda studies: Machine("cpu", 0, 1))
    context: Any = SimpleNamespace(log=logging.getLogger())

    def compute() -> Outcome:
        return CheckpointResult(PER_IMAGE_CURVATURE).compute(context, laboratory, store, work, work, {})[0]

    if isinstance(cause, KeyboardInterrupt):
        with pytest.raises(UserError, match=SENTENCE):
            compute()
        assert done == []
        return
    outcome = compute()
    assert {name.split("/")[0] for name in done} == {tiny_study.name} and len(done) == 2
    assert {name.split("/")[0] for name in outcome.failed} == {"dear"}
    assert set(outcome.finished) == set(done)
    names = ", ".join(sorted(outcome.failed))
    with pytest.raises(UserError) as caught:
        outcome.raise_if_failed("checkpoints", 4, "2 of 4 are recorded")
    assert str(caught.value) == f"2 of 4 checkpoints did not finish ({names}: {SENTENCE}). 2 of 4 are recorded"
