"""What is wrong with a typed ``dagster asset materialize`` (or ``dg launch``), said before Dagster acts on it.

Dagster takes a selection of nothing for all assets, ignores settings for what is not selected, and has its own words
for the rest. Called when such a command has loaded the definitions; everywhere else it does nothing.
"""

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import dagster as dg
from dagster._core.definitions.assets.graph.asset_graph import AssetGraph

from dd_assets.catalogue import catalogue
from dd_core.errors import UserError
from dd_core.study.study import Study
from dd_core.study.yaml_files import read_mapping
from dd_core.words import advice, nearest

EXAMPLE = '\'{"ops": {"curvature": {"config": {"epochs": [0]}}}}\''
_PLAIN_KEY = re.compile(r"[\w-]+(/[\w-]+)*")  # of one asset, and no expression
_SECTIONS = {"ops", "resources", "execution", "loggers"}


def words_of(argv: Sequence[str]) -> tuple[str, ...]:
    """A command's name and the two words after it, also where it is ``python -m dagster``."""
    program = Path(argv[0])
    return (program.parent.name if program.name == "__main__.py" else program.name, *argv[1:3])


def materialize_options(argv: Sequence[str]) -> dict[str, str] | None:
    """``--name value`` and ``--name=value`` pairs of such a command; None of any other."""
    words = words_of(argv)
    if words != ("dagster", "asset", "materialize") and words[:2] != ("dg", "launch"):
        return None
    return dict(_pairs(argv))


def _pairs(argv: Sequence[str]) -> Iterator[tuple[str, str]]:
    for position, argument in enumerate(argv):
        option, equals, value = argument.partition("=")
        if argument.startswith("-c"):
            option, equals, value = "--config", argument[2:], argument[2:]
        if option.startswith("--"):
            yield option, value if equals else "".join(argv[position + 1 : position + 2])


def settings_options(argv: Sequence[str]) -> list[tuple[str, str]]:
    """The options that hold settings, each as sentences name it, and its value: JSON or the name of a file."""
    return [
        (option if option == "--config-json" else f"{option} {value}", value)
        for option, value in _pairs(argv)
        if option in ("--config-json", "--config")
    ]


def refuse_mistakes(defs: dg.Definitions) -> None:
    """End this process with a sentence and exit code 1 if its command line asks for what cannot be."""
    options = materialize_options(sys.argv)
    if options is not None:
        with _said_at_the_end():
            check(defs, options, settings_options(sys.argv))


def refuse_broken_settings() -> None:
    """The same for what is no JSON or YAML, which Dagster reads before it loads the definitions."""
    if materialize_options(sys.argv) is not None:
        with _said_at_the_end():
            for name, value in settings_options(sys.argv):
                _settings(name, value)


@contextlib.contextmanager
def _said_at_the_end() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(1)


def check(defs: dg.Definitions, options: dict[str, str], settings: list[tuple[str, str]]) -> None:
    """Look at the options of a command, and at ``settings_options`` of it.

    Raises:
        UserError: it asks for what cannot be.
    """
    selection = options.get("--select") or options.get("--assets")
    graph = defs.resolve_asset_graph()
    keys = _selected(graph, selection) if selection else None
    for name, value in settings:
        _check_settings(graph, keys, name, _settings(name, value))
    if keys:
        _check_partitions(graph, sorted(keys), options)


def _selected(graph: AssetGraph, selection: str) -> set[dg.AssetKey] | None:
    """The assets of a selection that can be computed; None if Dagster cannot read it, and will say so."""
    found: set[dg.AssetKey] = set()
    for part in selection.split(","):
        if _PLAIN_KEY.fullmatch(part.strip()) and not graph.has(dg.AssetKey.from_user_string(part.strip())):
            raise UserError(f"there is no asset {part.strip()}{_why_unknown(graph, part.strip())}")
        try:
            keys = dg.AssetSelection.from_coercible([part]).resolve(graph)
        except Exception:  # each kind of mistake has an error of its own, some of them private
            return None
        if not keys:
            raise UserError(f"nothing is selected by {part!r}{_advice(graph, part)}")
        found |= {key for key in keys if graph.get(key).is_executable}
    return found


def _why_unknown(graph: AssetGraph, name: str) -> str:
    """Why there is no asset of that name, or which one was meant."""
    from dd_core.tables.kinds import KINDS

    known, errors = catalogue().studies, catalogue().errors
    study, _, asset = name.rpartition("/")
    if study in known and asset in KINDS and (reason := KINDS[asset].objection(known[study])):
        return f": {reason}"
    if study in {path.stem for path in errors}:
        return f": the study file of {study} is not loaded, as said above"
    meant = study if study in known else nearest(study, known)
    names = {key.path[-1]: key.to_user_string() for key in graph.get_all_asset_keys() if key.path[:-1] == [meant]}
    if not study:
        names = {key.path[0]: key.path[0] for key in graph.get_all_asset_keys() if len(key.path) == 1}
    if near := nearest(asset, names):
        return f"; did you mean {names[near]!r}?"
    where = "in what is not loaded, as said above" if study and errors else "in `dagster asset list`"
    return f"; look for it {where}"


def _advice(graph: AssetGraph, part: str) -> str:
    kind, _, name = part.partition(":")
    groups = sorted({str(graph.get(key).group_name) for key in graph.get_all_asset_keys()})
    if kind.strip() != "group":
        return "; `dagster asset list` shows what there is"
    near = nearest(name.strip("'\" "), groups)
    return f"; did you mean 'group:{near}'?" if near else f"; groups are {', '.join(groups)}"


def _check_settings(graph: AssetGraph, keys: set[dg.AssetKey] | None, name: str, settings: dict[str, object]) -> None:
    """Dagster silently ignores settings for assets that are not selected."""
    if unknown := sorted(set(settings) - _SECTIONS):
        raise UserError(f"{name} has the unknown key {unknown[0]!r}; settings of an asset go like {EXAMPLE}")
    ops = settings.get("ops", {})
    if not isinstance(ops, dict) or not all(isinstance(op, dict) and set(op) <= {"config"} for op in ops.values()):
        raise UserError(f"{name}: ops maps each asset to its config, like {EXAMPLE}")
    if keys is None:
        return
    selected = sorted({_op_name(graph, key) for key in keys})
    if strange := sorted(set(ops) - set(selected)):
        raise UserError(
            f"{name} has settings for {strange[0]!r}, which is not selected; "
            f"{advice(strange[0], selected, 'here they may be for')}"
        )


def _settings(name: str, value: str) -> dict[str, object]:
    if name != "--config-json":
        return read_mapping(Path(value), f"a file of settings ({name.partition(' ')[0]})", may_be_empty=True)
    try:
        settings = json.loads(value)
    except ValueError as error:
        raise UserError(f"--config-json is not JSON ({error}); write it like {EXAMPLE}") from None
    except RecursionError:
        raise UserError("--config-json is nested too deeply") from None
    if not isinstance(settings, dict):
        raise UserError(f"--config-json must be a JSON object, such as {EXAMPLE}")
    return settings


def _op_name(graph: AssetGraph, key: dg.AssetKey) -> str:
    return graph.assets_def_for_key(key).node_def.name


def _check_partitions(graph: AssetGraph, keys: list[dg.AssetKey], options: dict[str, str]) -> None:
    """That the partitions exist in every study asked for, which may be only one."""
    partitioned = [key for key in keys if graph.get(key).partitions_def is not None]
    unpartitioned = [key.to_user_string() for key in keys if key not in partitioned]
    asked = [f"--{name}" for name in ("partition", "partition-range") if f"--{name}" in options]
    if len(asked) > 1:
        raise UserError("give either --partition or --partition-range, not both")
    if not partitioned:
        if asked:
            raise UserError(f"{_listed(unpartitioned)} has no partitions; leave {asked[0]} out")
        return
    studies = {
        name: study for name, study in catalogue().studies.items() if any(k.path[0] == name for k in partitioned)
    }
    if len(studies) > 1:
        raise UserError(f"each study has partitions of its own, so name one in a command, not {', '.join(studies)}")
    for study in studies.values():
        first = next(study.iter_checkpoints()).key
        if not asked:
            raise UserError(
                f"{_listed([key.to_user_string() for key in partitioned])} is partitioned by arm and epoch: add "
                f"--partition '{first}' or a --partition-range 'FIRST...LAST'"
            )
        if asked == ["--partition-range"] and unpartitioned:
            raise UserError(
                f"{_listed(unpartitioned)} has no partitions and needs a command of its own, without --partition-range"
            )
        for key in _partition_keys(study, first, options):
            study.checkpoint(key)


def _partition_keys(study: Study, first: str, options: dict[str, str]) -> Iterator[str]:
    if "--partition" in options:
        yield options["--partition"]
        return
    ends = options["--partition-range"].split("...")
    if len(ends) != 2:
        raise UserError(
            f"--partition-range goes from one partition to another, with three dots between: '{first}...{first}', not "
            f"{options['--partition-range']!r}"
        )
    yield from ends


def _listed(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:3])}, …"
