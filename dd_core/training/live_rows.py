"""What a training tells people between two checkpoints: the file of ``dd_core.tables.live``, written every few seconds.

The training does not need it: where it cannot be written, or takes long, people see less.
"""

import contextlib
import datetime
import time
from typing import Any

import numpy as np

from dd_core.errors import StaleError, StoreError
from dd_core.store.files import write_text
from dd_core.store.parts import Part, PartStore
from dd_core.study.study import Checkpoint
from dd_core.tables.live import line, live_path
from dd_core.training.assembly import rows_of_parts
from dd_core.training.recorder import EVAL_METRICS
from dd_core.training.session import Session

# Between two writes, at least and at most, and the share of its time that a training may write in between: within ten
# seconds where a write takes less than a tenth of one, later on a store that is slow.
_LEAST, _MOST, _SHARE = 2.0, 60.0, 0.01


class LiveRows:
    """Rows of a session's epochs since the last checkpoint of its arm."""

    def __init__(self, session: Session, until: int):
        """Begin with what the resume point holds, and what of a part is not yet in the tables of its arm."""
        self._session, self._until = session, until
        self._study, self._store = session.study.whole, session.store
        self._path = live_path(self._store, self._study.name, session.arm.key)
        self._due = 0.0
        self._lines: dict[int, list[tuple[int, str]]] = {}  # by epoch: number of the trial, and what does not change
        self._add_rows(self._rows_of_part())
        recorder = session.recorder
        steps = np.concatenate(recorder.batches) if recorder.batches else self._no_steps
        evals = {int(rows[0, 0]): rows for rows in recorder.evals}
        for epoch in sorted({*map(int, steps[:, 0]), *evals, session.epoch}):
            self._add(epoch, steps[steps[:, 0] == epoch], evals.get(epoch))
        self.write()
        self._due = 0.0  # what comes first is told at once

    def add(self) -> None:
        """Take the epoch that the session has behind it into account; before its checkpoint is written."""
        epoch, recorder = self._session.epoch, self._session.recorder
        steps = recorder.batches[-1] if recorder.batches else self._no_steps
        evals = recorder.evals[-1] if recorder.evals else None
        is_evaluated = evals is not None and evals[0, 0] == epoch
        self._add(epoch, steps[steps[:, 0] == epoch], evals if is_evaluated else None)

    def write(self, *, is_last: bool = False) -> None:
        """Tell people, if it is time to; after the epoch's checkpoint has been written, if it has one."""
        if self._is_in_tables():  # of the last one people see how far it is
            self._lines = {self._session.epoch: self._lines[self._session.epoch]}
        began = time.monotonic()
        if began < self._due and not is_last:
            return
        with contextlib.suppress(StoreError):
            write_text(self._path, self._text())
        now = time.monotonic()
        self._due = now + min(max((now - began) / _SHARE, _LEAST), _MOST)

    def close(self) -> None:
        """The training is done: nothing is left to tell, unless other parts of the arm have to get there first."""
        if self._is_in_tables():
            self._lines[self._session.epoch] = []
        self.write(is_last=True)

    @property
    def _no_steps(self) -> np.ndarray:
        return np.empty((0, 3 + 3 * self._session.study.trials))

    def _is_in_tables(self) -> bool:
        """Whether the session is at a checkpoint that the arm has; of a part not all others may have got there."""
        epoch = self._session.epoch
        if epoch not in self._study.checkpoints:
            return False
        whole = self._store.whole if isinstance(self._store, PartStore) else self._store
        return whole.checkpoint_manifest_path(self._study.name, Checkpoint(self._session.arm, epoch)).exists()

    def _rows_of_part(self) -> list[dict[str, Any]]:
        """Evaluations that its own tables have and the arm's have not, as other parts are behind."""
        session = self._session
        if isinstance(self._store, PartStore):
            part, checkpoint = Part(session.study, self._store), Checkpoint(session.arm, session.epoch)
            with contextlib.suppress(StaleError, FileNotFoundError):
                table = rows_of_parts("training_evals", self._study, checkpoint, [part], None)
                return [] if table is None else table.drop_columns(["variant", "k", "recipe"]).to_pylist()
        return []

    def _add(self, epoch: int, steps: np.ndarray, evals: np.ndarray | None) -> None:
        """``steps``: rows of ``Recorder.batches``; ``evals``: the evaluation after the epoch, if there was one."""
        session, trials = self._session, self._session.study.trials
        if evals is None:
            evals = np.full((trials, 2 + len(EVAL_METRICS)), np.nan)
            evals[:, :2] = epoch, session.calendar.steps_after(epoch)
        values = steps[:, 3 : 3 + 2 * trials]
        counts = (~np.isnan(values)).sum(0)  # a trial that has ended has no batches any more
        means = np.where(counts, np.nansum(values, 0) / np.maximum(counts, 1), np.nan)
        columns = session.recorder.eval_columns([evals])
        columns |= {"batch_loss": means[:trials], "batch_error": 1 - means[trials:]}
        columns["trial"] = columns["trial"] + session.study.first_trial
        self._lines.pop(epoch, None)
        each = zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True)
        self._add_rows([dict(zip(columns, row, strict=True)) for row in each])

    def _add_rows(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            self._lines.setdefault(row["epoch"], []).append((row["trial"], line(row)))

    def _text(self) -> str:
        session, arm = self._session, self._session.arm
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds")
        same = {"variant": arm.variant, "k": arm.k, "recipe": self._study.recipe_hash(arm), "until": self._until}
        states = [trial.ending.status if trial.ending else "training" for trial in session.progress]
        ends = {
            number: line({**same, "status": state, "written_at": now})
            for number, state in zip(session.study.trial_numbers, states, strict=True)
        }
        return "".join(f"{row[:-1]}, {ends[trial][1:]}\n" for rows in self._lines.values() for trial, row in rows)
