"""What ``make docs`` adds to the pages of docs/: those that stand at the top of the repository, or come from the code.

README.md is the home page. References are made from the code, so that they never fall behind it: every key of a study
file, every table and column, every figure. Links to source files, which the site does not have, become their names.
"""

import json
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from dd_core.figures import FIGURES
from dd_core.study.study import Study
from dd_core.tables.columns import Table
from dd_core.tables.files import TABLES
from dd_core.tables.views import VIEWS, View

_TOP = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
_MADE = {"every key of a study file": "study_keys.md", "every table and column": "tables.md"}
_OUTSIDE = re.compile(r"\[([^\]]*)\]\(\.\./([^)#]+)(#[^)]*)?\)")
_CODE = re.compile(r"`[^`\n]+`")
_NAME = re.compile(r"\[(?:docs/)?[\w-]+\.md\]\(([\w-]+\.md)(#[^)]*)?\)")
_CONTENTS = re.compile(r"<!-- contents -->.*?<!-- end of contents -->\n", re.DOTALL)  # the site shows its own
_FILLED_IN = "filled in when the study is read"
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
}
_KEYS = """# Every key of a study file

A study file is YAML. These tables are made from the classes that read it, so they are complete. A key without a default
must be there. A key that is misspelt, of another type or out of range is refused with its path, before anything trains.
[Study files](study_files.md) begins more gently, with examples.
"""
_TABLES = """# Every table and column

Each table is a folder of Parquet files below `tables/` in the data root, and a view of the same name in
`warehouse.duckdb`. SQL has these comments, too:
`SELECT column_name, comment FROM duckdb_columns() WHERE table_name = 'curvature'`. [Queries](queries.md) has examples.
"""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    top = Path(config.config_file_path).parent
    pages = {page: (top / name).read_text(encoding="utf-8") for name, page in _TOP.items()}
    for name, text in {**pages, "study_keys.md": study_keys(), "tables.md": tables_and_columns()}.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links hold on the site that hold in the repository."""
    if page.file.src_uri in _TOP.values():  # as if it lay in docs/, like the others
        markdown = re.sub(r"\]\((?!https?:|docs/|#)", "](../", _CONTENTS.sub("", markdown)).replace("](docs/", "](")
    markdown = markdown.replace("<!-- every figure -->", every_figure())
    for words, made in _MADE.items():
        markdown = markdown.replace(words, f"[{words}]({made})") if page.file.src_uri != made else markdown
    markdown = _CODE.sub(lambda code: code[0].replace("\\|", "|"), markdown)  # GitHub's tables need the backslash
    return _NAME.sub(partial(_titled, files), _OUTSIDE.sub(_linked, markdown))


def _linked(link: re.Match[str]) -> str:
    words, target, anchor = link.groups()
    return f"[{words}]({_TOP[target]}{anchor or ''})" if target in _TOP else words


def _titled(files: Files, link: re.Match[str]) -> str:
    """A link that names a file, with the title of its page instead."""
    page = files.get_file_from_path(link[1])
    if page is None:
        return link[0]  # MkDocs will say that there is no such page
    title = page.content_string.partition("\n")[0].removeprefix("# ").partition(":")[0]
    return f"[{title}]({link[1]}{link[2] or ''})"


def study_keys() -> str:
    """The keys of a study file: a section for each mapping in it, with a row for each key."""
    schema = Study.model_json_schema()
    return "\n".join([_KEYS, *_sections("", schema, schema["$defs"], set())])


def _sections(path: str, model: dict[str, Any], models: dict[str, Any], seen: set[str]) -> Iterator[str]:
    rows, inner = [], []
    for key, setting in model["properties"].items():
        if _FILLED_IN in setting.get("description", "") or (not path and key == "name"):
            continue
        where = f"{path}.{key}" if path else key
        for name, is_named in _models_in(setting):
            if name not in seen and models[name].get("properties"):
                inner.append((where + (".NAME" if is_named else ""), name))
        default = "" if key in model.get("required", ()) else _default(setting)
        rows.append(f"| `{key}` | {_cell(_meaning(setting, models))} | {_values(setting, models)} | {default} |")
    yield f"## {f'`{path}`' if path else 'At the top'}\n"
    yield f"{_plain(model.get('description', ''))}\n"
    yield "| key | meaning | value | default |\n|---|---|---|---|"
    yield "\n".join(rows) + "\n"
    for where, name in inner:
        if name not in seen:
            seen.add(name)
            yield from _sections(where, models[name], models, seen)


def _models_in(setting: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """The models that a value may be, and whether it is a mapping of names to them."""
    for one in setting.get("anyOf", [setting]):
        named = one.get("additionalProperties")
        if "$ref" in one:
            yield one["$ref"].rpartition("/")[2], False
        elif isinstance(named, dict) and "$ref" in named:
            yield named["$ref"].rpartition("/")[2], True


def _values(setting: dict[str, Any], models: dict[str, Any]) -> str:
    """What may stand there, for people."""
    if "anyOf" in setting:
        return " or ".join(dict.fromkeys(_values(one, models) for one in setting["anyOf"]))
    if "$ref" in setting:
        return "mapping"
    if "enum" in setting:
        return ", ".join(f"`{value}`" for value in setting["enum"])
    if "const" in setting:
        return f"`{setting['const']}`"
    kind = setting.get("type")
    if kind == "null":
        return "null"
    if kind == "array":
        items = setting.get("prefixItems") or [setting.get("items", {})]
        return "list of " + ", ".join(dict.fromkeys(_values(one, models) for one in items))
    bounds = [f"{sign} {setting[bound]:g}" for bound, sign in _BOUNDS.items() if bound in setting]
    return " ".join([_TYPES.get(str(kind), "any value"), *([", ".join(bounds)] if bounds else [])])


def _default(setting: dict[str, Any]) -> str:
    value = setting.get("default")
    if isinstance(value, dict) and value:
        return "see there"
    return f"`{json.dumps(value, ensure_ascii=False)}`"


def _meaning(setting: dict[str, Any], models: dict[str, Any]) -> str:
    """What a key says of itself, or the first sentence about the mapping that belongs there."""
    if "description" in setting:
        return str(setting["description"])
    described = [models[name].get("description", "") for name, _ in _models_in(setting)]
    return " ".join(described).partition("\n")[0]


def every_figure() -> str:
    """A table for each group of figures."""
    groups: dict[str, list[str]] = {}
    for figure in FIGURES:
        groups.setdefault(figure.group, []).append(f"| `{figure.name}` | {_cell(figure.description)} |")
    head = "| figure | shows |\n|---|---|\n"
    return "\n\n".join(f"## group:{group}\n\n{head}" + "\n".join(rows) for group, rows in groups.items())


def tables_and_columns() -> str:
    """A section for each table and view, with a row for each column."""
    views = {view.name: view for view in VIEWS}
    return "\n".join([_TABLES, *(_table(table) for _, table in sorted({**TABLES, **views}.items()))])


def _table(table: Table | View) -> str:
    optional = table.optional if isinstance(table, Table) else ()
    rows = [f"| `{column.name}` | {_cell(column.description)} | {column.type} |" for column in table.columns]
    rows += [f"| `{group.pattern}` | {_cell(group.description)} | {group.type} |" for group in optional]
    head = f"## {table.name}\n\n{_plain(table.description)}\n\n| column | meaning | type |\n|---|---|---|\n"
    return head + "\n".join(rows) + "\n"


def _plain(text: str) -> str:
    return text.replace("``", "`").strip()


def _cell(text: str) -> str:
    return " ".join(_plain(text).replace("|", "\\|").replace("<", "&lt;").split())
