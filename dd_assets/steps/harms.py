"""What the assets say of files that are damaged or lost: in the log, and in their metadata."""

from collections.abc import Collection, Iterable
from typing import Any

import dagster as dg

from dd_core.store.store import Store
from dd_core.study.study import Study
from dd_core.words import counted

_MOST_WARNINGS = 20


def warn_of_harms(
    context: dg.AssetExecutionContext,
    store: Store,
    studies: Iterable[Study],
    tables: Collection[str],
    *,
    anew: bool = True,
) -> dict[str, Any]:
    """Say in the log which files of some tables are damaged or lost; what is drawn or counted goes without them.

    Every file is read, or where not ``anew`` those that have changed since somebody did.

    Returns:
        Metadata that says it too; empty where nothing is wrong.
    """
    from dd_core.tables.damage import sentences

    harms = sentences(store, studies, tables, anew=anew)
    for harm in harms[:_MOST_WARNINGS]:
        context.log.warning(harm)
    if len(harms) > _MOST_WARNINGS:
        context.log.warning(f"... and {counted(len(harms) - _MOST_WARNINGS, 'other file')}")
    return {"left_out": dg.MetadataValue.md("\n".join(f"- {harm}" for harm in harms))} if harms else {}
