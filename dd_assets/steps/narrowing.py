"""What run config narrows: studies, arms, epochs. Empty lists mean everything; unknown names are refused here, once."""

from collections.abc import Collection, Iterable, Mapping

import dagster as dg
from pydantic import Field

from dd_core.errors import UserError
from dd_core.study.study import Arm, Study
from dd_core.words import advice


class OfStudies(dg.Config):
    """Narrows an asset to studies."""

    studies: list[str] = Field(default=[], description="names of studies")

    def asked(self, studies: Mapping[str, Study]) -> list[Study]:
        """The studies asked for.

        Raises:
            UserError: an unknown name.
        """
        for name in self.studies:
            if name not in studies:
                raise UserError(f"there is no study {name!r}; {advice(name, studies)}")
        return [studies[name] for name in self.studies or studies]


class OfArms(OfStudies):
    """Narrows it to arms, too."""

    arms: list[str] = Field(default=[], description="arms, for example s-core.k008")

    def of(self, study: Study) -> list[Arm]:
        """Those of a study's arms that are asked for."""
        return [arm for key, arm in study.arms.items() if not self.arms or key in self.arms]

    def asked(self, studies: Mapping[str, Study]) -> list[Study]:
        """As of ``OfStudies``; an arm that none of them has is refused as well."""
        asked = super().asked(studies)
        refuse_unknown("the arm", self.arms, {arm for study in asked for arm in study.arms})
        return asked


class Narrowing(OfArms):
    """Narrows what a driver looks at; empty lists mean everything trained."""

    epochs: list[int] = Field(default=[], description="checkpoint epochs")

    def asked(self, studies: Mapping[str, Study]) -> list[Study]:
        """As of ``OfArms``; an epoch without checkpoints is refused as well."""
        asked = super().asked(studies)
        known = {epoch for study in asked for epoch in study.checkpoints}
        refuse_unknown("a checkpoint at epoch", self.epochs, known)
        return asked


def refuse_unknown(what: str, wanted: Iterable[str | int], known: Collection[str | int]) -> None:
    """Pass only what one of the studies asked for has.

    Raises:
        UserError: none has it.
    """
    missing = [str(value) for value in dict.fromkeys(wanted) if value not in known]
    if missing:
        there = f"; {advice(missing[0], map(str, known))}" if known else ""
        raise UserError(f"no study asked for has {what} {', '.join(missing)}{there}")
