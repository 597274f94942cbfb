"""Tables of graph studies: every evaluation judged honestly, results of trials, claims beside measurements."""

from dd_core.tables.columns import ARM, EPOCH, SPLIT, Column, Table

# Raise it when results change: they are computed again.
GRAPHS_VERSION = "2"


def _wilson(name: str, of: str) -> tuple[Column, ...]:
    return (
        Column(name, "float64", f"{of}, fraction"),
        Column(f"{name}_low", "float64", "95 % Wilson interval over graphs, lower end"),
        Column(f"{name}_high", "float64", "upper end"),
    )


_DOMAIN = (
    Column("domain", "string", "planning, causal or knowledge_graph"),
    Column("labels", "string", "as_published or grounded"),
)
# What an evaluation of some graphs says, in the order of the tables.
MEASURES = (
    Column("num_graphs", "int32", "evaluated; training graphs are judged by the labels they were given, wrong or not"),
    Column("label_1_share", "float64", "share of these graphs whose label is 1"),
    *_wilson("accuracy", "graphs whose label is predicted"),
    *_wilson("accuracy_class_0", "of label 0, those predicted"),
    *_wilson("accuracy_class_1", "of label 1, those predicted"),
    Column("balanced_accuracy", "float64", "mean of the two, fraction; null: one label alone"),
    Column("class_balance_delta", "float64", "accuracy_class_1 minus accuracy_class_0, absolute; null: likewise"),
    Column("auroc", "float64", "area under the ROC curve of the probability of label 1; null: one label alone"),
    Column("loss", "float64", "cross-entropy, nats"),
    Column("calibration_error", "float64", "expected calibration error, 15 bins of equal width (Guo et al. 2017)"),
    Column("predicted_1_share", "float64", "share of the graphs that label 1 is predicted for"),
    Column("largest_share", "float64", "share of the graphs that the label predicted most often is predicted for"),
    Column("prediction_entropy", "float64", "entropy of the shares of predicted labels, bits: 1 even, 0 collapsed"),
    Column("collapse", "string", "none, partial or full: see dd_core.analysis.graphs.collapse"),
    Column("cycle_loss_1", "float64", "mean squared error of the reconstructed features, mean over graphs"),
    Column("cycle_loss_2", "float64", "of the level above"),
    Column("cycle_loss", "float64", ".7 of the first and .3 of the second"),
    Column("kept_share", "float64", "share of a graph's nodes that both poolings keep, mean over graphs"),
    Column(
        "cycle_loss_floor",
        "float64",
        ".7 times the share of nodes that either pooling drops, times the features' variance: what is dropped comes "
        "back as one constant. The second level's own floor is unknown and counts as 0. Of fixed features a pooling "
        "that drops nodes that are alike can go below",
    ),
    Column("pooling_entropy", "float64", "of the first pooling's scores, 0: one node takes all, to 1: all alike"),
    Column("majority_baseline", "float64", "accuracy of always predicting the label more frequent in training"),
    Column(
        "bayes_ceiling",
        "float64",
        "best accuracy that can be expected on these very graphs without having seen their labels, fraction",
    ),
)
GRAPH_PROGRESS = Table(
    "graph_progress",
    "Every evaluation of every trial on graphs, by split, with baseline and ceiling beside it.",
    (*ARM, EPOCH, *_DOMAIN, SPLIT, *MEASURES),
)
NSM_RESULTS = Table(
    "nsm_results",
    "The result of every trial on graphs, by split, at its best and at its last epoch, which are separate rows.",
    (
        *ARM,
        *_DOMAIN,
        Column(
            "result",
            "string",
            "best: the trained epoch (1 or later) of lowest validation loss, without validation graphs no row; last: "
            "the last epoch of the trial that was evaluated",
        ),
        EPOCH,
        Column("status", "string", "of the trial's last attempt, as in runs; null: unknown"),
        SPLIT,
        Column("num_parameters", "int64", "of one network; null: unknown"),
        *MEASURES,
        Column("above_baseline", "float64", "accuracy minus majority_baseline"),
        Column(
            "above_ceiling",
            "bool",
            "accuracy_low lies above bayes_ceiling, as by chance one row in forty does where the ceiling is reached; "
            "null: of training graphs, whose labels were seen",
        ),
        Column(
            "p_above_ceiling",
            "float64",
            "probability of as many graphs right, or more, where bayes_ceiling is the truth (one-sided binomial test); "
            "null: likewise",
        ),
    ),
)
NSM_CLAIMS = Table(
    "nsm_claims",
    "What was claimed of the published networks, what their authors' repository says later, and what is measured here; "
    "of labels as_published alone, since nothing was claimed of others.",
    (
        *(column for column in ARM if column.name != "trial"),
        *_DOMAIN,
        Column("claim", "string", "key of the claim, such as accuracy_10_epochs or no_collapse"),
        Column("sentence", "string", "the claim in words"),
        Column("source", "string", "where it is claimed"),
        Column("claimed", "float64", "the number claimed, in unit"),
        Column("claimed_low", "float64", "95 % Wilson interval where it is a share of so many graphs; null: unknown"),
        Column("claimed_high", "float64", "upper end"),
        Column("claimed_is", "string", "value: it is this; at least, at most: it is beyond this"),
        Column("later", "float64", "what the authors' repository says later or elsewhere, in unit; null: nothing"),
        Column("later_low", "float64", "95 % Wilson interval where it is a share of so many graphs; null: unknown"),
        Column("later_high", "float64", "upper end"),
        Column("later_source", "string", "where, and of how many graphs"),
        Column("unit", "string", "fraction, loss, epochs, seconds or dollars"),
        Column("measured", "float64", "here, mean over trials; null: not measured yet, or nothing here measures it"),
        Column(
            "measured_low",
            "float64",
            "95 % interval, lower end. Of accuracies, gains and learning the wider of Student's over trials and "
            "Wilson's over graphs; else over trials, and of a best epoch wider by what lies between evaluations",
        ),
        Column("measured_high", "float64", "upper end"),
        Column("measured_of", "string", "what was measured: epoch, split, graphs and trials"),
        Column("baseline", "float64", "accuracy of the better of always saying either label, at most the ceiling"),
        Column("ceiling", "float64", "Bayes ceiling, where it is an accuracy"),
        Column("floor", "float64", "what dropped nodes alone give, where it is a cycle loss: about, no bound"),
        Column("verdict", "string", "holds, does not hold, or cannot be told, by the interval"),
        Column("why", "string", "one sentence"),
    ),
)
GRAPH_TABLES = (GRAPH_PROGRESS, NSM_RESULTS, NSM_CLAIMS)
