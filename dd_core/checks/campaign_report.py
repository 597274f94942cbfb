"""A verdict on a campaign as text that a person reads from top to bottom."""

from collections.abc import Sequence

from dd_core.checks.campaign import GOOD_R_SQUARED, Verdict

_SHOWN = 12


def report_of(verdict: Verdict, findings: Sequence[str] = ()) -> str:
    """What is there, what is wrong with it, what the curves say, and, in the last line, whether that will do.

    Args:
        verdict: on the campaign.
        findings: sentences about its hypotheses.
    """
    lines = [
        f"{verdict.study}: {verdict.num_runs} of {verdict.num_expected} runs",
        f"  training: {_counts(verdict.statuses)}",
        f"  analysis: {_counts(verdict.outcomes)}",
        f"  R^2: {_r_squared(verdict)}",
    ]
    sections = {
        "Runs that never began": verdict.missing,
        "Runs that did not come to their end": verdict.incomplete,
        "Metrics that are not there at their frequency": verdict.gaps,
        "Impossible values": verdict.impossible,
        "Values out of range": verdict.out_of_range,
        "Alerts": verdict.alerts,
    }
    for title, problems in sections.items():
        lines.append(f"{title}: {'none' if not problems else ''}".rstrip())
        lines += [f"  - {problem}" for problem in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"  - and {len(problems) - _SHOWN} more")
    if findings:
        lines += ["What the curves say:", *(f"  - {finding}" for finding in findings)]
    lines.append("GO" if verdict.is_go else f"NO-GO: {'; '.join(verdict.reasons)}")
    return "\n".join(lines)


def _counts(numbers: dict[str, int]) -> str:
    return (
        ", ".join(f"{number} {name}" for name, number in sorted(numbers.items(), key=lambda pair: -pair[1])) or "none"
    )


def _r_squared(verdict: Verdict) -> str:
    values = verdict.r_squared
    if not values:
        return "no run has a fit"
    ends = f"{values[0]:.3f} to {values[-1]:.3f}, median {values[len(values) // 2]:.3f}"
    return f"{ends}; above {GOOD_R_SQUARED} in {verdict.num_good} of {len(values)} fitted runs"
