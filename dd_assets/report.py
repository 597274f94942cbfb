"""Everything about a study on one page: ``python -m dd_assets.report quickstart``.

Writes ``reports/<study>.html`` below the data root and says where it is. The page holds everything it needs. Figures
are those that are drawn already; ``dagster asset materialize --select 'group:figures,report'`` draws them first.
"""

import argparse
import os
import sys
from pathlib import Path

from dd_assets.catalogue import catalogue
from dd_assets.laboratory import writable_store
from dd_core.errors import DataMissingError, UserError


def main(argv: list[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ddlab report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="name of a study")
    options = parser.parse_args(argv)
    try:
        print(_written(options.study))
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _written(name: str) -> Path:
    from dd_core.reports.page import write_report

    study = catalogue().get(name)
    root = os.environ.get("DD_ROOT", "data")
    if "://" not in root and not Path(root).expanduser().exists():
        raise DataMissingError(f"there is no data root {root}; set DD_ROOT to the folder that has the results")
    return write_report(writable_store(), study)[0]


if __name__ == "__main__":
    sys.exit(main())
