"""Names of curvature columns, for those who only need to spell them; imports nothing of PyTorch.

A finite difference has its step h in the column's name, in plain decimal notation with ``p`` for the point, so that it
is a plain SQL identifier: ``fd_norm_h0p001``, ``fd_directional_h3_standard_error``.
"""

import math
import re
from decimal import Decimal

from dd_core.errors import UserError

# What every estimator of the input Hessian returns, in this order.
CURVATURE_COLUMNS = (
    "loss",
    "probability",
    "gradient_norm",
    "gradient_curvature",
    "trace",
    "trace_standard_error",
    "frobenius_norm",
    "frobenius_norm_standard_error",
    "largest_eigenvalue",
    "largest_eigenvalue_residual",
)

# What step_name makes.
STEP_PATTERN = r"h\d+(p\d+)?"

_STEP_AT_END = re.compile(r"(?:^|_)h(\d+)(?:p(\d+))?(?:_standard_error|_se)?$")


def step_name(h: float) -> str:
    """The name of a step: ``h0p001`` for 1e-3, ``h1`` for 1.0, ``h0p00001`` for 1e-5. Different steps, different names.

    Raises:
        UserError: the step is not a positive finite number.
    """
    if not (math.isfinite(h) and h > 0):
        raise UserError(f"a finite difference needs a positive finite step, and {h} is none")
    digits = f"{Decimal(repr(float(h))):f}"
    whole, _, fraction = digits.partition(".")
    fraction = fraction.rstrip("0")
    return f"h{whole}p{fraction}" if fraction else f"h{whole}"


def columns_of_step(h: float) -> tuple[str, str, str, str]:
    """The columns of one step: norm, its standard error, directional value, its standard error."""
    name = step_name(h)
    norm, directional = f"fd_norm_{name}", f"fd_directional_{name}"
    return norm, f"{norm}_standard_error", directional, f"{directional}_standard_error"


def step_of(name: str) -> float:
    """The step h that a name made by ``step_name`` or ``columns_of_step`` speaks of.

    Raises:
        UserError: there is no step in that name.
    """
    found = _STEP_AT_END.search(name)
    if found is None:
        raise UserError(f"the column name {name!r} does not end in a step such as h0p001")
    return float(f"{found[1]}.{found[2] or 0}")
