"""Rows of the tables from what metric files say of a run."""

from typing import Any

import numpy as np
import pyarrow as pa

from dd_core.errors import UserError
from dd_core.exchange.columns import BATCH_COLUMNS, EVAL_COLUMNS, VALIDATION_COLUMNS
from dd_core.exchange.reading import NO_STEP
from dd_core.exchange.runs import Run, Values
from dd_core.tables.files import to_arrow


def rows_of(run: Run, common: dict[str, Any]) -> dict[str, pa.Table]:
    """The rows of a run, by table.

    Args:
        run: what the files say.
        common: what is the same in every row: variant, k, trial and recipe.

    Raises:
        UserError: something is told twice.
    """
    tables = {}
    for table, columns in run.content.items():
        joined = {name: _joined(name, columns[name], table) for name in sorted(columns)}
        make = {"training_batches": _batches, "training_evals": _evals, "training_monitors": _monitors}[table]
        content = make(joined)
        step = content["step"]
        content["step"] = pa.array(step, mask=step == NO_STEP)
        tables[table] = to_arrow(table, {**common, **content}, len(step))
    return tables


_Joined = dict[str, dict[str, np.ndarray]]


def _batches(joined: _Joined) -> dict[str, Any]:
    steps, columns = _side_by_side(joined, BATCH_COLUMNS, "step")
    epochs = np.full(len(steps), NO_STEP)
    for part in joined.values():
        at = np.searchsorted(steps, part["step"])
        is_other = (epochs[at] != NO_STEP) & (epochs[at] != part["epoch"])
        if is_other.any():
            raise UserError(f"step {part['step'][np.argmax(is_other)]} is in different epochs in files of the same run")
        epochs[at] = part["epoch"]
    return {"epoch": epochs, "step": steps, **columns}


def _evals(joined: _Joined) -> dict[str, Any]:
    epochs, columns = _side_by_side(joined, (*EVAL_COLUMNS, *VALIDATION_COLUMNS), "epoch")
    steps = np.full(len(epochs), NO_STEP)
    for part in joined.values():
        np.maximum.at(steps, np.searchsorted(epochs, part["epoch"]), part["step"])
    return {"epoch": epochs, "step": steps, **columns}


def _monitors(joined: _Joined) -> dict[str, Any]:
    metrics = np.repeat(list(joined), [len(part["epoch"]) for part in joined.values()])
    names = ("epoch", "step", "value", "standard_error")
    return {"metric": metrics, **{name: np.concatenate([part[name] for part in joined.values()]) for name in names}}


def _side_by_side(joined: _Joined, names: tuple[str, ...], place: str) -> tuple[np.ndarray, dict[str, Any]]:
    """The places (epochs or steps) at which any column has a value, and the columns there, null where one has none."""
    places = np.unique(np.concatenate([part[place] for part in joined.values()]))
    columns: dict[str, Any] = dict.fromkeys(names)
    for name, part in joined.items():
        at = np.searchsorted(places, part[place])
        value, is_missing = np.zeros(len(places)), np.ones(len(places), dtype=bool)
        value[at], is_missing[at] = part["value"], False
        columns[name] = pa.array(value, mask=is_missing)
    return places, columns


def _joined(name: str, values: list[Values], table: str) -> dict[str, np.ndarray]:
    """What all files say of a column, in the order of epochs and steps.

    Raises:
        UserError: a value is told twice.
    """
    fields = ("epoch", "step", "value", "standard_error", "rows")
    joined = {field: np.concatenate([getattr(part, field) for part in values]) for field in fields}
    joined["file"] = np.repeat(np.arange(len(values)), [len(part.rows) for part in values])
    order = np.lexsort((joined["step"], joined["epoch"]))
    joined = {field: array[order] for field, array in joined.items()}
    is_again = np.diff(joined["epoch"]) == 0
    if table != "training_evals":  # of which there is one in an epoch
        is_again &= np.diff(joined["step"]) == 0
    if is_again.any():
        at = int(np.argmax(is_again))
        first_file, second_file = (values[joined["file"][i]].file for i in (at, at + 1))
        first, second = first_file.where(joined["rows"][at]), second_file.where(joined["rows"][at + 1])
        steps = joined["step"][at : at + 2]
        what = f"step {steps[0]}" if steps[0] == steps[1] != NO_STEP else f"epoch {joined['epoch'][at]}"
        of_batches = steps[0] != steps[1]
        hint = "; --keep last takes the later one, if the run was resumed" if first_file == second_file else ""
        if first_file != second_file and steps[0] != NO_STEP:
            hint = (
                "; if these are two runs, a column seed or variant tells them apart, or their folders (seed-1), or "
                "--by lr,wd"
            )
        if of_batches:
            hint = "; an epoch has one evaluation: --rename it to a name of its own, and it is a metric of steps"
        raise UserError(f"{second}: {name} is told twice for {what}, first in {first}{hint}")
    return joined
