"""Everything Dagster sees. ``build_defs`` is also what tests and other deployments call, with their own resources."""

import contextlib
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from dd_assets.assets.curvature import CURVATURE_ASSETS
from dd_assets.assets.curvature_exports import curvature_exports_asset
from dd_assets.assets.figures import figure_assets
from dd_assets.assets.graphs import graph_assets
from dd_assets.assets.loss_slopes import loss_slope_assets
from dd_assets.assets.memorization import memorization_assets
from dd_assets.assets.metric_exports import metric_exports_asset
from dd_assets.assets.report import report_asset
from dd_assets.assets.resource_probe import resource_probe_asset
from dd_assets.assets.results import ResultAssets
from dd_assets.assets.tables import tables_asset
from dd_assets.assets.tensorboard_exports import tensorboard_exports_asset
from dd_assets.assets.training import checkpoints_asset
from dd_assets.catalogue import broken_key, catalogue
from dd_assets.laboratory import Laboratory
from dd_assets.running.command import refuse_mistakes
from dd_assets.running.console import install_console
from dd_assets.running.executor import in_this_process
from dd_assets.running.instance import LOADS
from dd_assets.steps.checkpoint_results import CheckpointResult
from dd_assets.steps.user_errors import install_cli_hook, shown_as_sentence
from dd_assets.steps.versions import STOCKS, recipes
from dd_core.errors import StudyError
from dd_core.study.files import Catalogue
from dd_core.tables.kinds import KINDS

# backfill_policy is still marked beta; one warning per asset would bury what matters.
warnings.filterwarnings("ignore", category=dg.BetaWarning)


# Kinds of results with more than the usual assets.
_SPECIAL = {assets.kind.name: assets for assets in (CURVATURE_ASSETS,)}


def build_defs(studies: Catalogue | None = None, resources: dict[str, Any] | None = None) -> dg.Definitions:
    """All assets and checks of the studies.

    Args:
        studies: default the package's and the user's study files.
        resources: replaces resources by name, for example ``{"laboratory": Laboratory(root=...)}``.
    """
    found = studies or catalogue()
    assets: list[dg.AssetsDefinition] = []
    trained = {name: study for name, study in found.studies.items() if study.has_checkpoints}
    results = [_SPECIAL.get(kind.name, ResultAssets(kind)) for kind in KINDS.values()]
    for study in trained.values():
        own = [result for result in results if not result.kind.objection(study)]
        assets += [checkpoints_asset(study, trained), *(result.of_study(study, trained) for result in own)]
        settings = (part for result in own for part in CheckpointResult(result.kind).declared_settings(study))
        assets += [dg.AssetsDefinition(specs=[part.spec]) for part in (*recipes(study), *settings)]
    assets += [stock.asset(trained) for stock in STOCKS]
    assets += [*(result.driver(trained) for result in results), tables_asset(found.studies)]
    probed = {name: study for name, study in trained.items() if not study.imported}
    assets += [resource_probe_asset(probed), metric_exports_asset(found.studies)]
    assets += [tensorboard_exports_asset(found.studies), curvature_exports_asset(trained)]
    assets += [*loss_slope_assets(found.studies), *memorization_assets(found.studies), *graph_assets(found.studies)]
    assets += [*figure_assets(found.studies), report_asset(found.studies)]
    assets += [_broken_study(path, reason) for path, reason in found.errors.items()]
    return dg.Definitions(
        assets=assets,
        resources={"laboratory": Laboratory(), **(resources or {})},
        executor=in_this_process,
    )


def _broken_study(path: Path, reason: str) -> dg.AssetsDefinition:
    """A study file that cannot be used, shown in the UI with the reason, so that it is not simply missing."""
    key = dg.AssetKey(broken_key(path))
    loads = dg.AssetCheckSpec(LOADS, asset=key, description="The file is a study. Failed by `make ui` when it is not.")

    @dg.asset(key=key, group_name=key.path[0], description=f"Not loaded. {reason}", check_specs=[loads])
    def broken() -> tuple[Any, ...]:
        with shown_as_sentence():
            raise StudyError(reason)

    dg.get_dagster_logger().warning(f"study file not loaded: {reason}")
    return broken


@contextlib.contextmanager
def _nothing_collected() -> Iterator[None]:
    """Without looks for garbage: definitions stay, and looks at them again and again take a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


install_cli_hook()
install_console()
with _nothing_collected():
    defs = build_defs()
refuse_mistakes(defs)
