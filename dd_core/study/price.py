"""What a GPU-hour costs."""

import math
import os

from dd_core.errors import UserError
from dd_core.study.study import Study


def price_per_gpu_hour(study: Study) -> float | None:
    """What an hour of a GPU costs: as the study says, else ``DD_PRICE_PER_GPU_HOUR``; None where neither does.

    Raises:
        UserError: the environment's is not a price.
    """
    if study.price_per_gpu_hour is not None:
        return study.price_per_gpu_hour
    text = os.environ.get("DD_PRICE_PER_GPU_HOUR", "").strip()
    if not text:
        return None
    try:
        price = float(text)
    except ValueError:
        price = math.nan
    if not 0 <= price < math.inf:
        raise UserError(f"DD_PRICE_PER_GPU_HOUR must be a price, such as 2.5, not {text!r}")
    return price
