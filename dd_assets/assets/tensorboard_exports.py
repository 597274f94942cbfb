"""Asset ``tensorboard_exports``: the metrics of every run as event files, for TensorBoard."""

import dagster as dg

from dd_assets.laboratory import Laboratory
from dd_assets.steps.narrowing import OfArms
from dd_assets.steps.user_errors import shown_as_sentence
from dd_core.errors import UserError
from dd_core.study.study import Study

_TABLES = ("training_batches", "training_evals", "training_monitors")
_DESCRIPTION = """\
Evaluations, batches and monitors of every run of the present recipes as event files,
`exports/tensorboard/<study>/<arm>/trial-000/`: `tensorboard --logdir data/exports/tensorboard` draws them. Of the
batches of a trial there are at most 10,000, evenly spaced. Files that would not change are not written. The package
`tensorboard` is an extra: `pip install 'double-descent-lab[tensorboard]'`.
"""


class EventsConfig(OfArms):
    """Narrows what is exported; empty lists mean everything."""


def tensorboard_exports_asset(studies: dict[str, Study]) -> dg.AssetsDefinition:
    """The asset of all studies, imported ones included."""

    @dg.asset(
        name="tensorboard_exports",
        deps=list(_TABLES),
        group_name="exports",
        kinds={"tensorboard"},
        description=_DESCRIPTION,
    )
    def tensorboard_exports(
        context: dg.AssetExecutionContext, config: EventsConfig, laboratory: Laboratory
    ) -> dg.MaterializeResult[None]:
        from dd_core.exchange.tensorboard import EventFiles, export_events

        done = list[EventFiles]()
        with shown_as_sentence():
            store = laboratory.store()
            folder = store.exports_folder("tensorboard")
            for study in config.asked(studies):
                done += [found for arm in config.of(study) if (found := export_events(store, study, arm))]
            if not done:
                what = ", ".join([*config.studies, *config.arms]) or "any study"
                raise UserError(f"there are no metrics of the present recipe of {what} under {store.root}; train first")
        context.log.info(f"look at them by: tensorboard --logdir {folder}")
        return dg.MaterializeResult(
            metadata={
                "files": sum(files.files for files in done),
                "files_written": sum(files.written for files in done),
                "dagster/row_count": sum(files.rows for files in done),
                "dagster/uri": str(folder),
            }
        )

    return tensorboard_exports
