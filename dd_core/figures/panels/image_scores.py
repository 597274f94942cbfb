"""The scores that the platform has for an image: loss, gradient norm, the Hessian's, and published finite differences.

Belongs here: which column each is, what it is called and its unit. Does not belong here: how it is drawn.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dd_core.figures.drawing import style
from dd_core.study.curvature_names import step_of
from dd_core.study.study import Study

_GRADIENT = "nats per standardised pixel"


@dataclass(frozen=True)
class Definition:
    """One score of an image.

    Attributes:
        column: of ``per_image_curvature``; with ``auroc_`` before it, of ``curvature``.
        name: in words, unlike that of every other definition.
        short: the name where all others are of its kind.
        axis: title of an axis, without the unit.
        unit: of the values.
        step: of a finite difference as published, for example ``h = 1``.
    """

    column: str
    name: str
    short: str
    axis: str
    unit: str
    step: str = ""

    @property
    def is_published(self) -> bool:
        """Whether it is a finite difference as published."""
        return bool(self.step)


def _local(column: str, name: str, unit: str, of: str = "") -> Definition:
    full = f"{of}: {name}" if of else name
    return Definition(column, full, full, full, unit)


LOSS = _local("loss", "loss", "nats")
GRADIENT_NORM = _local("gradient_norm", "gradient norm", _GRADIENT)
ALONG_GRADIENT = _local("gradient_curvature", "along the gradient", style.INPUT_CURVATURE, "Hessian")
TRACE = _local("trace", "trace", style.INPUT_CURVATURE, "Hessian")
LOCAL = (
    LOSS,
    GRADIENT_NORM,
    ALONG_GRADIENT,
    TRACE,
    _local("frobenius_norm", "Frobenius norm", style.INPUT_CURVATURE, "Hessian"),
    _local("largest_eigenvalue", "largest eigenvalue", style.INPUT_CURVATURE, "Hessian"),
)


def published(columns: Sequence[str], study: Study, kind: str) -> list[Definition]:
    """The finite differences among some columns, by rising step.

    Args:
        columns: of ``per_image_curvature``.
        study: says how they are normalised.
        kind: norm or directional.
    """
    found = [name for name in columns if name.startswith(f"fd_{kind}_") and not name.endswith("_standard_error")]
    # Divided by h or h squared they are second derivatives; as published code has them, differences of gradients.
    is_derivative = study.curvature.finite_difference.normalisation == "per_step"
    change = "g(x\u00a0+\u00a0hr)\u00a0\u2212\u00a0g(x)"
    if kind == "norm":
        axis = f"finite difference |{change}|" + ("\u00a0/\u00a0h" if is_derivative else "")
        unit = style.INPUT_CURVATURE if is_derivative else _GRADIENT
    else:
        axis = f"directional difference r\u00b7({change})" + ("\u00a0/\u00a0h\u00b2" if is_derivative else "")
        unit = style.INPUT_CURVATURE if is_derivative else "nats"
    name = {"norm": "finite difference", "directional": "directional difference"}[kind]
    made = []
    for column in sorted(found, key=step_of):
        step = f"h = {column.rpartition('_h')[2].replace('p', '.')}"
        short = step if kind == "norm" else f"directional, {step}"
        made.append(Definition(column, f"{name}, {step}", short, axis, unit, step))
    return made
