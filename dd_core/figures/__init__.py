"""The registry of figures: what each shows, which tables it reads and which module draws it.

Importing this package costs nothing: Altair, DuckDB and Arrow are imported when a figure is drawn. A module of a figure
has one function, ``chart(study, store, connection)``, which returns None where the study has no data for it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    import altair as alt
    import duckdb

    from dd_core.store.store import Store
    from dd_core.study.study import Study

# In the specification's usermeta, which Vega ignores: by table the ``digest_of_rows`` that a figure was drawn from,
# and by what they were hashed.
DRAWN_FROM = "drawn_from"


@dataclass(frozen=True)
class Figure:
    """A figure that can be drawn for any study.

    Attributes:
        name: asset name and folder name.
        description: what it shows, one or two sentences.
        tables: the tables it reads, which are its upstream assets.
        module: full name of the module that draws it.
        group: of assets, in the UI and in ``--select 'group:...'``.
        is_over_widths: its curve compares arms, so that it is drawn of those that are trained alike.
    """

    name: str
    description: str
    tables: tuple[str, ...]
    module: str
    group: str = "figures"
    is_over_widths: bool = False

    def draw(
        self,
        study: "Study",
        store: "Store",
        connection: "duckdb.DuckDBPyConnection",
        digest: Callable[[str], str] | None = None,
    ) -> "alt.TopLevelMixin | None":
        """Draw the figure for one study from the results of its present recipe.

        Args:
            study: what to draw.
            store: where the study's files lie.
            connection: has a view for every table with files (``dd_core.tables.warehouse.connect``); only read from.
            digest: of the study's rows in a table, by its name, where that is known already.

        Returns:
            The chart, which says in its usermeta what it was drawn from, or None if the study has no data for it.
        """
        import importlib

        from dd_core.figures.drawing.quick import quickly
        from dd_core.figures.drawing.render import with_usermeta
        from dd_core.figures.drawing.selection import HASHED_BY, digest_of_rows

        module = importlib.import_module(self.module)
        with quickly():
            drawn = cast("alt.TopLevelMixin | None", module.chart(study, store, connection))
        if drawn is None:
            return None
        digests = {
            table: digest(table) if digest else digest_of_rows(connection, study, table) for table in self.tables
        }
        return with_usermeta(drawn, **{DRAWN_FROM: HASHED_BY | digests})


def _figure(
    name: str, tables: tuple[str, ...], description: str, group: str = "figures", is_over_widths: bool = False
) -> Figure:
    return Figure(name, description, tables, f"{__name__}.charts.{name}", group, is_over_widths)


_SLOPES, _INCREMENTAL, _MEMORIZATION = "loss_slopes", "incremental", "memorization"
_NSM = "nsm"

FIGURES: tuple[Figure, ...] = (
    _figure(
        "double_descent_curve",
        ("training_evals",),
        "Test and training error and loss against width, with the width from which on the training labels are fitted.",
        is_over_widths=True,
    ),
    _figure(
        "training_curves",
        ("training_evals",),
        "Error and loss of one arm against epoch, rightly and wrongly labelled training images apart.",
    ),
    _figure(
        "epoch_by_width",
        ("training_evals",),
        "Test error over epoch and width, and the epoch from which on each width fits its training labels.",
    ),
    _figure(
        "curvature_by_width",
        ("curvature", "training_evals"),
        "Mean and median curvature of the loss at the training images against width, below the test error.",
    ),
    _figure(
        "curvature_over_training",
        ("curvature", "training_evals"),
        "How the curvature at rightly and wrongly labelled images spreads during training: narrow, threshold, wide.",
    ),
    _figure(
        "most_curved_images",
        ("curvature", "per_image_curvature", "training_evals"),
        "The training images at which the loss is most curved, and those at which it is least.",
    ),
    _figure(
        "curvature_definitions",
        ("curvature", "per_image_curvature", "training_evals"),
        "Which curvature finds the mislabelled images: exact Hessian and published finite difference, and their AUROC.",
    ),
    _figure(
        "hessian_spectrum",
        ("hessian_spectra", "training_evals"),
        "Spectral density and largest eigenvalues of the Hessian in the weights: narrow, threshold, wide.",
    ),
    _figure(
        "hessian_by_width",
        ("hessian_spectra", "training_evals"),
        "Largest eigenvalue and trace of the Hessian in the weights against width, below the test error.",
    ),
    _figure(
        "hessian_over_training",
        ("hessian_spectra", "training_evals"),
        "How largest eigenvalue and trace of the Hessian in the weights move during training: narrow, threshold, wide.",
    ),
    _figure(
        "training_dynamics",
        ("training_monitors", "training_evals"),
        "Losses, norms, curvature and gradient noise during training, as monitors measured them: narrow, threshold, "
        "wide.",
    ),
    _figure(
        "gpu_hours",
        ("runs",),
        "Time and money spent on training by width and by how attempts ended, when, and how well it was predicted.",
    ),
    _figure(
        "loss_slope_straightness",
        ("loss_slopes",),
        "Which share of the loss curves is one straight line in log-log axes, and which other models fit better.",
        _SLOPES,
    ),
    _figure(
        "loss_slope_mosaic",
        ("training_batches", "loss_slopes", "loss_slope_fits"),
        "The three straightest and the three least straight loss curves with fits, knee and residuals.",
        _SLOPES,
    ),
    _figure(
        "loss_slope_prediction",
        ("loss_slopes",),
        "The early slope against the best validation loss: correlation, interval, and how well it predicts.",
        _SLOPES,
    ),
    _figure(
        "loss_slope_windows",
        ("loss_slopes", "loss_slope_fits"),
        "Correlation of the slope with the best validation loss by the window it is fitted over, and its stability.",
        _SLOPES,
    ),
    _figure(
        "loss_slope_knee",
        ("loss_slopes",),
        "When burn-in ends by three definitions, and when the largest Hessian eigenvalue settles.",
        _SLOPES,
    ),
    _figure(
        "loss_slope_grid",
        ("loss_slopes",),
        "Best validation loss over learning rate and weight decay, with the runs that diverged.",
        _SLOPES,
    ),
    _figure(
        "loss_slope_units",
        ("loss_slopes",),
        "Slopes of the loss in bits against the same in nats: equal in log-log axes, not in linear ones.",
        _SLOPES,
    ),
    _figure(
        "loss_slope_noise",
        ("loss_slopes",),
        "The noise of the loss curve against the best validation loss.",
        _SLOPES,
    ),
    _figure(
        "loss_slope_by_width",
        ("loss_slopes", "loss_slope_fits", "training_evals"),
        "Slopes of the loss curve and where it breaks against width, below the test error.",
        _SLOPES,
    ),
    _figure(
        "plasticity",
        ("class_progress", "training_monitors"),
        "Whether a network that learns one task after the other keeps its ability to learn: accuracy on the newest "
        "classes, dormant units and ranks of features, by variant.",
        _INCREMENTAL,
    ),
    _figure(
        "curvature_by_class_age",
        ("per_image_curvature", "images", "class_progress"),
        "Mean curvature at images of the classes of each task, while further classes come.",
        _INCREMENTAL,
    ),
    _figure(
        "forgetting_at_boundaries",
        ("boundary_forgetting", "class_progress"),
        "Whether loss, curvature and gradients of a task tell which images are forgotten when the next task begins.",
        _INCREMENTAL,
    ),
    _figure(
        "detection_by_score",
        ("memorization_detection",),
        "How well every memorisation score finds wrong labels and duplicates, beside the published numbers.",
        _MEMORIZATION,
    ),
    _figure(
        "scores_against_truth",
        ("memorization_agreement",),
        "How well every score agrees with memorisation itself: rank correlation, correlation and cosine similarity.",
        _MEMORIZATION,
    ),
    _figure(
        "score_ranks",
        ("memorization", "memorization_truth"),
        "Ranks of images in the main scores and in memorisation itself against each other, binned.",
        _MEMORIZATION,
    ),
    _figure(
        "memorization_histogram",
        ("memorization_truth",),
        "How memorisation itself is distributed over images with right and wrong labels.",
        _MEMORIZATION,
    ),
    _figure(
        "memorized_images",
        ("memorization", "memorization_truth"),
        "The images of each class that are most memorised, most often forgotten and most atypical, with their scores.",
        _MEMORIZATION,
    ),
    _figure(
        "graph_curves",
        ("graph_progress", "nsm_results"),
        "Accuracy and loss of graph networks against epoch, by domain, between majority baseline and Bayes ceiling.",
        _NSM,
    ),
    _figure(
        "graph_collapse",
        ("graph_progress", "nsm_results"),
        "Whether graph networks come to predict one label alone: accuracy by class, share of the label, collapse.",
        _NSM,
    ),
    _figure(
        "accuracy_against_ceiling",
        ("nsm_results",),
        "Test accuracy of graph networks at best and at last epochs between majority baseline and Bayes ceiling.",
        _NSM,
    ),
    _figure(
        "cycle_loss",
        ("graph_progress",),
        "How well each level of a graph network is reconstructed, with the floor, and how evenly pooling scores nodes.",
        _NSM,
    ),
    _figure(
        "graph_widths",
        ("nsm_results",),
        "Test and training error of graph networks against width, at best and at last epochs.",
        _NSM,
    ),
    _figure(
        "nsm_claims_page",
        ("nsm_claims",),
        "What was claimed of the published graph networks, what their authors said later, and what is measured "
        "here, with a verdict for each claim.",
        _NSM,
    ),
)

# What is drawn while a study trains, in this order: it needs evaluations alone.
SO_FAR: tuple[Figure, ...] = tuple(
    figure
    for name in ("training_curves", "double_descent_curve", "epoch_by_width")
    for figure in FIGURES
    if figure.name == name
)
