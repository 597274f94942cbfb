"""Everything about a study on one page: ``python -m dd_assets.report quickstart``.

Writes ``reports/<study>.html`` below the data root and says where it is. The page holds everything it needs. Figures
are those that are drawn already; ``dagster asset materialize --select 'group:figures,report'`` draws them first.
"""

import argparse
import sys

from dd_assets.catalogue import catalogue
from dd_assets.laboratory import existing_store
from dd_assets.running.ending import ends_well


@ends_well()
def main(argv: list[str] | None = None) -> int:
    """Write the page; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ddlab report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("study", help="name of a study")
    options = parser.parse_args(argv)
    study, store = catalogue().get(options.study), existing_store()
    from dd_core.reports.page import write_report

    print(write_report(store, study)[0])
    return 0


if __name__ == "__main__":
    sys.exit(main())
