r"""Is a campaign of runs fit to be analysed? Says GO or NO-GO with the reasons.

  ddlab check loss_slope_digits

looks at all runs of a study, trained here or imported: whether every run is there and came to its end, and every metric
at its frequency, what values are impossible or out of range, how many runs failed, and how well a power law fits. Then
it says what the curves answer to H1 and H2; the verdict is the last line. Loss curves that have changed since they were
last analysed are analysed first. The exit code is 0 for GO, 1 for NO-GO, 2 for a mistake. Of an imported study its file
says under ``monitors`` what its program measured how often; null for what it did not.
"""

import argparse
import contextlib
import sys

from dd_assets.catalogue import catalogue
from dd_assets.compute.local import this_machine
from dd_assets.laboratory import existing_store
from dd_assets.running.ending import ends_well
from dd_core.store.store import Store
from dd_core.study.study import Study


@ends_well(mistake=2)
def main(arguments: list[str] | None = None) -> int:
    """Check; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="ddlab check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", help="name of a study")
    parser.add_argument(
        "--strict",
        action="store_true",
        help="as the loss-slope campaign has it: accuracies of 0 and 1 and rates of 0 are out of range, and whatever "
        "is out of range is NO-GO",
    )
    options = parser.parse_args(arguments)
    return _check(catalogue().get(options.study), existing_store(), strict=options.strict)


def _check(study: Study, store: Store, *, strict: bool) -> int:
    from dd_core.analysis.loss_slope_report import findings
    from dd_core.checks.campaign import CAMPAIGN_TABLES, examine
    from dd_core.checks.campaign_report import report_of
    from dd_core.results.loss_slopes import rebuild
    from dd_core.tables.damage import sentences
    from dd_core.tables.warehouse import connect, refresh

    machine = this_machine()
    done = rebuild(store, study, machine.num_workers or machine.num_cores)
    if done.computed:
        refresh(store)
    for sentence in [*done.left_out, *sentences(store, [study], CAMPAIGN_TABLES)]:
        print(f"left out: {sentence}")
    for arm, trace in done.failed.items():
        print(f"{study.name}/{arm} could not be analysed:\n{trace}", file=sys.stderr)
    with contextlib.closing(connect(store, CAMPAIGN_TABLES)) as connection:
        verdict = examine(store, study, connection, strict=strict)
    print(report_of(verdict, findings(store, study)))
    return 0 if verdict.is_go else 1


if __name__ == "__main__":
    sys.exit(main())
