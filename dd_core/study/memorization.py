"""How memorisation is measured in a study: settings of the tables of ``dd_core.tables.memorization``.

None of this changes a weight, so none of it is part of a recipe.
"""

from typing import Annotated

from pydantic import AfterValidator, Field

from dd_core.study.widths import unique
from dd_core.study.yaml_files import Strict

_Epochs = Annotated[tuple[Annotated[int, Field(ge=0)], ...], AfterValidator(unique)]


class MemorizationSettings(Strict):
    """Settings of the scores, their bootstraps, and what is computed of checkpoints for them alone."""

    early: int | None = Field(
        default=None,
        ge=1,
        description="EL2N is the mean over the evaluations up to this epoch; null: the first tenth of the study",
    )
    threshold: float | None = Field(
        default=None,
        gt=0,
        description="tau of the learning time, squared norm of the input gradient; null: its mean over all images and "
        "evaluations of a trial",
    )
    num_bootstraps: int = Field(default=200, ge=100, le=100_000, description="samples of trials and images")
    influences: int = Field(
        default=5, ge=0, le=1000, description="training images kept for each test image, by largest influence"
    )
    grand: _Epochs = Field(
        default=(),
        description="checkpoint epochs at which every training image's gradient in all weights is measured, for GraNd",
    )
    out_of_fold: bool = Field(
        default=False,
        description="with data.subset: predict at the last checkpoint the images left out, for confident learning",
    )

    @property
    def probes(self) -> bool:
        """Whether checkpoints have to be looked at for it."""
        return bool(self.grand) or self.out_of_fold
