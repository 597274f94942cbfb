"""Which curvature finds the mislabelled images? The definitions against each other, and how well each does that.

Above, one arm image by image: the trace of the input Hessian against the published finite difference at every step h.
Below, for studies with wrong labels, the AUROC of every definition at a narrow, the threshold and a wide network.
"""

from typing import Any

import altair as alt
import duckdb

from dd_core.figures.drawing import style
from dd_core.figures.drawing.landmarks import errors_by_width, key_arm, nearest, shown_widths
from dd_core.figures.drawing.selection import MOST_LINES, select, shown_variants
from dd_core.figures.panels import definition_aurocs, definition_scatter
from dd_core.figures.panels.definition_scatter import Scatter
from dd_core.store.store import Store
from dd_core.study.study import Arm, Checkpoint, Study


def chart(study: Study, store: Store, connection: duckdb.DuckDBPyConnection) -> alt.TopLevelMixin | None:
    """Draw both parts at the latest checkpoint epoch whose curvature all arms have."""
    selection = select(connection, study, "curvature")
    if selection is None:
        return None
    widths = errors_by_width(connection, study, selection)
    computed = definition_aurocs.read(connection, study, selection)
    arm = with_differences(key_arm(study, selection.arms, widths), computed)
    columns = [row["definition"].column for row in computed if row["arm"] == arm.key]
    differences = [column for column in dict.fromkeys(columns) if column.startswith("fd_")]
    scatter = definition_scatter.read(connection, study, Checkpoint(arm, selection.epoch), differences)
    if scatter is None:
        return None
    aurocs = [row for row in computed if row["auroc"] is not None]
    variants, others = shown_variants(study, {row["variant"] for row in aurocs}, MOST_LINES)
    drawn = {
        variant: shown_widths(ks, widths[variant].threshold if variant in widths else None)
        for variant in variants
        if (ks := sorted({row["k"] for row in aurocs if row["variant"] == variant}))
    }
    described = [v for v in study.variants if v == arm.variant or v in drawn]
    parts: list[alt.VConcatChart] = [definition_scatter.panels(scatter, study.variants[arm.variant].label_noise > 0)]
    if drawn:
        parts.append(definition_aurocs.panels(aurocs, drawn))
    return style.finish(
        alt.vconcat(*parts, spacing=36).resolve_scale(color="independent"),
        headline(study, scatter, [row for row in aurocs if row["arm"] == arm.key]),
        [
            *style.describe(study, described, selection.epoch),
            scatter.note(study.data.examples),
            _about_aurocs(study) if drawn else None,
            None if scatter.has_differences else how_to(study),
            others,
            selection.note(study),
        ],
        characters=94,
    )


def with_differences(arm: Arm, computed: list[dict[str, Any]]) -> Arm:
    """The arm, or if others alone have finite differences the one of them that is nearest to it in width."""
    found = {(row["variant"], row["k"]) for row in computed if row["definition"].is_published}
    same = [k for variant, k in found if variant == arm.variant]
    if same:
        return Arm(arm.variant, nearest(same, arm.k))
    if found:
        variant = min(found)[0]
        return Arm(variant, nearest([k for other, k in found if other == variant], arm.k))
    return arm


def headline(study: Study, scatter: Scatter, aurocs: list[dict[str, Any]]) -> str:
    """One sentence: the definition that finds wrong labels best at the arm drawn, or how the definitions agree."""
    if not aurocs:
        return scatter.title()
    found = sorted(definition_aurocs.means(aurocs), key=lambda row: row["auroc"], reverse=True)
    best = found[0]
    trace = next((row for row in found if row["definition"].column == "trace" and row is not best), None)
    difference = next((row for row in found if row["definition"].is_published and row is not best), None)
    others = []
    if trace:
        others.append(f"{'exact trace' if scatter.is_exact else 'trace'}: {trace['auroc']:.2f}")
    if difference:
        others.append(f"{difference['name']}: {difference['auroc']:.2f}")
    where = (
        f"{scatter.checkpoint.arm.key}: the" if len(study.variants) > 1 else f"At k = {scatter.checkpoint.arm.k} the"
    )
    rest = "; ".join([f"AUROC {best['auroc']:.2f}", *others])
    return f"{where} {best['name']} finds the mislabelled {study.data.examples} best ({rest})"


def how_to(study: Study) -> str:
    """How one gets the finite differences that are not there."""
    estimators = f"[{study.curvature.hessian_estimator}, finite_difference]"
    return (
        "Published finite differences have not been computed: write "
        f"curvature: {{estimators: {estimators}}} in the study file and materialise curvature"
    )


def _about_aurocs(study: Study) -> str:
    one = study.data.examples.removesuffix("s")
    text = f"AUROC: probability that a mislabelled {one} scores above another one; 0.5 (dashed) is chance. "
    if study.trials == 1:
        return text + "One trial"
    return text + "Dot and number: mean over trials; bar: lowest to highest trial"
