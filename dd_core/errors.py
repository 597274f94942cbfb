"""Errors that a user can act on. Each message is one sentence that says what is wrong and what to do.

Anything else that escapes is a defect of this project and keeps its stack trace.
"""

import importlib.util


class UserError(Exception):
    """A mistake or a missing thing on the user's side; shown without a stack trace."""


class StudyError(UserError):
    """A study file that cannot be read or describes something impossible."""


class DataMissingError(UserError):
    """A data set that is not on this machine (or, for its true size, incomplete)."""


class StoreError(UserError):
    """The data root cannot be read or written (permission, disk full, not a directory)."""


class StaleError(UserError):
    """A stored result that belongs to another recipe, other weights or another data set, or is damaged."""


def require_torch(what: str) -> None:
    """Refuse what needs PyTorch where there is none, as in the image of Dagster's own services.

    Raises:
        UserError: there is none.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError(f"{what} needs PyTorch, which is not installed here; run the same command where training runs")
