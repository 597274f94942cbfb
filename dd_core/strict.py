"""The base of everything a user configures: unknown keys, wrong types and numbers that are none are refused."""

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """Immutable, nothing converted, nothing ignored."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
