"""What a training tells people between two checkpoints: the file of ``dd_core.tables.live``, written every few seconds.

The training does not need it: where it cannot be written, or takes long, people see less.
"""

import contextlib
import datetime
import time
from typing import TYPE_CHECKING

import numpy as np

from dd_core.errors import StaleError, StoreError
from dd_core.store.files import remove
from dd_core.store.parts import Part, PartStore
from dd_core.study.study import Checkpoint
from dd_core.tables.files import TABLES, to_arrow, write_parquet
from dd_core.tables.live import LIVE, live_path
from dd_core.training.assembly import rows_of_parts
from dd_core.training.recorder import EVAL_METRICS
from dd_core.training.session import Session

if TYPE_CHECKING:
    import pyarrow as pa

_MEASURED = [c.name for c in TABLES["training_evals"].file_columns if c.name not in ("variant", "k", "recipe")]
# Between two writes, at least and at most, and the share of its time that a training may write in between.
_LEAST, _MOST, _SHARE = 2.0, 8.0, 0.01


class LiveRows:
    """Rows of a session's epochs since the last checkpoint of its arm."""

    def __init__(self, session: Session, until: int):
        """Begin with what the resume point holds, and what of a part is not yet in the tables of its arm."""
        self._session, self._until = session, until
        self._study, self._store = session.study.whole, session.store
        self._due = 0.0
        self._evals: list[np.ndarray] = []  # of every epoch, as ``Recorder.evals``; NaN where it was not evaluated
        self._batches: list[np.ndarray] = []  # of the same epochs, float64 (2, T): mean loss and accuracy of batches
        self._before = self._rows_of_part()
        recorder = session.recorder
        steps = np.concatenate(recorder.batches) if recorder.batches else self._no_steps
        evals = {int(rows[0, 0]): rows for rows in recorder.evals}
        for epoch in sorted({*map(int, steps[:, 0]), *evals, session.epoch}):
            self._add(epoch, steps[steps[:, 0] == epoch], evals.get(epoch))
        self.write()

    def add(self) -> None:
        """Take the epoch that the session has behind it into account; before its checkpoint is written."""
        epoch, recorder = self._session.epoch, self._session.recorder
        steps = recorder.batches[-1] if recorder.batches else self._no_steps
        evals = recorder.evals[-1] if recorder.evals else None
        is_evaluated = evals is not None and evals[0, 0] == epoch
        self._add(epoch, steps[steps[:, 0] == epoch], evals if is_evaluated else None)

    def write(self, *, is_last: bool = False) -> None:
        """Tell people, if it is time to; after the epoch's checkpoint has been written, if it has one."""
        if self._is_in_tables():
            self._before = {}
            del self._evals[:-1], self._batches[:-1]  # of the last one people see how far it is
        if time.monotonic() < self._due and not is_last:
            return
        table, began = self._table(), time.monotonic()
        with contextlib.suppress(StoreError):
            write_parquet(live_path(self._store, self._study.name, self._session.arm.key), table)
        now = time.monotonic()
        self._due = now + min(max((now - began) / _SHARE, _LEAST), _MOST)

    def close(self) -> None:
        """The training is done: nothing is left to tell, unless other parts of the arm have to get there first."""
        if self._is_in_tables():
            remove(live_path(self._store, self._study.name, self._session.arm.key))
        else:
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

    def _rows_of_part(self) -> dict[str, np.ndarray]:
        """Evaluations that its own tables have and the arm's have not, as other parts are behind."""
        session, table = self._session, None
        if isinstance(self._store, PartStore):
            part, checkpoint = Part(session.study, self._store), Checkpoint(session.arm, session.epoch)
            with contextlib.suppress(StaleError, FileNotFoundError):
                table = rows_of_parts("training_evals", self._study, checkpoint, [part], None)
        return {} if table is None else {name: table[name].to_numpy() for name in _MEASURED}

    def _add(self, epoch: int, steps: np.ndarray, evals: np.ndarray | None) -> None:
        """``steps``: rows of ``Recorder.batches``; ``evals``: the evaluation after the epoch, if there was one."""
        trials = self._session.study.trials
        if evals is None:
            evals = np.full((trials, 2 + len(EVAL_METRICS)), np.nan)
            evals[:, :2] = epoch, self._session.calendar.steps_after(epoch)
        if self._evals and self._evals[-1][0, 0] == epoch:
            del self._evals[-1], self._batches[-1]
        self._evals.append(evals)
        values = steps[:, 3 : 3 + 2 * trials]
        counts = (~np.isnan(values)).sum(0)  # a trial that has ended has no batches any more
        means = np.where(counts, np.nansum(values, 0) / np.maximum(counts, 1), np.nan)
        self._batches.append(means.reshape(2, trials))

    def _table(self) -> "pa.Table":
        session, arm, before = self._session, self._session.arm, self._before
        own = session.recorder.eval_columns(self._evals)
        own["trial"] += session.study.first_trial
        own["batch_loss"], accuracy = np.stack(self._batches, axis=2).reshape(2, -1)  # in the same order
        own["batch_error"] = 1 - accuracy
        columns = own
        if before:
            nothing = np.full(len(before["trial"]), np.nan)
            columns = {name: np.concatenate([before.get(name, nothing), values]) for name, values in own.items()}
        states = np.array([trial.ending.status if trial.ending else "training" for trial in session.progress])
        common = {
            "variant": arm.variant,
            "k": arm.k,
            "recipe": self._study.recipe_hash(arm),
            "until": self._until,
            "status": states[columns["trial"] - session.study.first_trial],
            "written_at": datetime.datetime.now(datetime.UTC),
        }
        return to_arrow(LIVE, {**columns, **common}, len(columns["trial"]))
