"""What per-image curvature has beside other kinds of results: estimators in the run config, a check and a summary."""

import json
from collections.abc import Mapping

import dagster as dg
from pydantic import Field, ValidationError

from dd_assets.assets.checks import check_curvature, curvature_check_specs
from dd_assets.assets.results import ResultAssets
from dd_assets.steps.narrowing import Narrowing
from dd_core.errors import UserError
from dd_core.store.store import Store
from dd_core.study.curvature import CurvatureSettings
from dd_core.study.study import Study
from dd_core.study.yaml_files import describe_problems
from dd_core.tables.kinds import PER_IMAGE_CURVATURE


class Estimators(dg.Config):
    """Which estimators, instead of what the study file says under ``curvature``; null leaves that as it is."""

    estimators: list[str] | None = Field(
        default=None, description="exact, top_directions or double_backward; and finite_difference if wanted"
    )
    logits: str | None = Field(default=None, description="seen or all, where classes come one group after the other")
    precision: str | None = Field(default=None, description="float32, bfloat16 or float64")
    relative_error: float | None = Field(default=None, description="of top_directions, for example 0.01")
    num_probes: int | None = Field(default=None, description="of top_directions and double_backward")
    steps: list[float] | None = Field(default=None, description="h of finite_difference, standardised pixels")
    normalisation: str | None = Field(default=None, description="of finite_difference: per_step, sum or mean")
    mean_batch_size: int | None = Field(default=None, description="of normalisation mean")

    def applied_to(self, study: Study) -> Study:
        """The study with these settings in place of its own.

        Raises:
            UserError: they are impossible.
        """
        own = study.curvature.model_dump(mode="json")
        given = {name: value for name, value in self.model_dump().items() if value is not None}
        for name in ("steps", "normalisation", "mean_batch_size"):
            if name in given:
                own["finite_difference"][name] = given.pop(name)
        own |= {name: value for name, value in given.items() if name in CurvatureSettings.model_fields}
        try:
            settings = CurvatureSettings.model_validate_json(json.dumps(own))
        except ValidationError as error:
            raise UserError(f"run config: {describe_problems(error, CurvatureSettings)}") from error
        return study.model_copy(update={"curvature": settings})


class CurvatureConfig(Narrowing, Estimators):
    """What ``curvature`` looks at, and how."""


def _summarise(
    context: dg.AssetExecutionContext, store: Store, studies: Mapping[str, Study], asked: set[str]
) -> tuple[int, bool]:
    """Rebuild the summary of every study; returns its rows, and whether that was possible for all.

    Raises:
        UserError: it was not for one of those asked for.
    """
    from dd_core.results.curvature_summary import rebuild

    rows, is_whole = 0, True
    for name, study in studies.items():
        try:
            rows += rebuild(store, study)
        except UserError as error:
            if name in asked:
                raise
            context.log.warning(f"the curvature of {name} was not summarised anew: {error}")
            is_whole = False
    return rows, is_whole


CURVATURE_ASSETS = ResultAssets(
    PER_IMAGE_CURVATURE,
    config=Estimators,
    driver_config=CurvatureConfig,
    check_specs=curvature_check_specs,
    check=check_curvature,
    summarise=_summarise,
)
