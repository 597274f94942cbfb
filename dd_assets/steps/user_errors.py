"""A user's mistake as one sentence, in the event log and on the terminal, instead of a stack trace."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from types import TracebackType

from dagster._config.errors import (
    EvaluationError,
    FieldNotDefinedErrorData,
    FieldsNotDefinedErrorData,
    RuntimeMismatchErrorData,
)
from dagster._core.errors import (
    DagsterExecutionInterruptedError,
    DagsterInvalidConfigError,
    DagsterUserCodeProcessError,
)
from dagster_shared.error import SerializableErrorInfo

from dd_assets.running.command import settings_options, words_of
from dd_core.errors import UserError
from dd_core.words import advice

_KINDS = {"Int": "a whole number", "Float": "a number", "String": "text", "Bool": "true or false", "ARRAY": "a list"}

# What the dagster CLI itself raises for a wrong selection, partition or config. It would show these with a stack trace.
_CLI_MISTAKES = {
    "CheckError",
    "DagsterInvalidConfigError",
    "DagsterInvalidInvocationError",
    "DagsterInvalidSubsetError",
    "DagsterUnknownPartitionError",
    "DagsterAssetSelectionParseError",
    "DagsterInvalidAssetSelectionError",
}


@contextlib.contextmanager
def shown_as_sentence() -> Iterator[None]:
    """Let a UserError, or an interruption, end an asset's step with its message alone, and without a retry.

    Dagster prints the stack of any exception from a step but one: the error that carries an already formatted error
    from another process. It is also a DagsterError, which a RetryPolicy leaves alone; of an interruption (Ctrl-C, a run
    cancelled in the UI) it would make another attempt.
    """
    try:
        yield
    except UserError as error:
        raise _sentence(str(error)) from None
    except (KeyboardInterrupt, DagsterExecutionInterruptedError):
        raise _sentence("interrupted: what was finished is kept; run the same again to go on") from None


def _sentence(text: str) -> DagsterUserCodeProcessError:
    return DagsterUserCodeProcessError(
        text, user_code_process_error_infos=[SerializableErrorInfo(f"{text}\n", [], None)]
    )


def install_cli_hook() -> None:
    """Show the dagster CLI's own complaints about its arguments as one sentence.

    Only where this process is ``dagster asset ...`` or ``dg launch``: everywhere else
    Python behaves as it does.
    """
    if words_of(sys.argv)[:2] not in (("dagster", "asset"), ("dg", "launch")):
        return
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if _CLI_MISTAKES & {base.__name__ for base in kind.__mro__} or isinstance(error, UserError):
            print(f"Error: {_explain(error)}", file=sys.stderr)
        elif kind.__name__ == "OperationalError" and "disk" in str(error):
            home = os.environ.get("DAGSTER_HOME", "DAGSTER_HOME")
            print(
                f"Error: the disk is full: Dagster's records in {home} could not be written; finished results are "
                "kept, free some space and run the same command again",
                file=sys.stderr,
            )
        else:
            usual(kind, error, trace)

    sys.excepthook = hook


def _explain(error: BaseException) -> str:
    """The sentence: about the setting if the command names a wrong one, else Dagster's own words."""
    words = " ".join(str(error).removeprefix("Failure condition: ").split())
    if isinstance(error, DagsterInvalidConfigError):
        given = ", ".join(name for name, _ in settings_options(sys.argv)) or "settings"
        return f"{given}: {'; '.join(map(_wrong_setting, error.errors))}"
    return words


def _keys_of(description: str) -> list[str]:
    """The keys in Dagster's words for a type: ``{ epochs?: (Int | { env: String }) studies?: [String] }``."""
    inside = description.partition("{")[2].rpartition("}")[0]
    while (flat := re.sub(r"\{[^{}]*\}", "", inside)) != inside:
        inside = flat
    return re.findall(r"(\w+)\??: ", inside)


def _wrong_setting(problem: EvaluationError) -> str:
    """The path of the key, and what is expected there."""
    entries = [str(getattr(entry, "field_name", getattr(entry, "list_index", "?"))) for entry in problem.stack.entries]
    data = problem.error_data
    if isinstance(data, FieldNotDefinedErrorData | FieldsNotDefinedErrorData):
        names = [data.field_name] if isinstance(data, FieldNotDefinedErrorData) else data.field_names
        instead = advice(names[0], _keys_of(problem.message.partition("Expected:")[2]), "settings are")
        return f"{'.'.join([*entries, ', '.join(names)])}: there is no such setting; {instead}"
    if isinstance(data, RuntimeMismatchErrorData):
        kind = data.config_type_snap
        expected = _KINDS.get(kind.given_name or kind.kind.value, f"of type {kind.given_name or kind.kind.value}")
        return f"{'.'.join(entries)}: must be {expected}, not {data.value_rep}"
    return f"{'.'.join(entries)}: {' '.join(problem.message.split())}"
