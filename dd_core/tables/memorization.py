"""Tables of memorisation: scores of images, how well they detect what is wrong, and how well they tell the truth."""

from dd_core.tables.columns import ARM, IMAGE, LABELS, STUDY, Column, Table

# Raise it when results change: they are computed again.
MEMORIZATION_VERSION = "2"
# What scores are called in columns and rows, what people read, and +1 where a higher value means more memorised.
SCORES: dict[str, tuple[str, int]] = {
    "final_loss": ("final loss", 1),
    "csl": ("cumulative sample loss", 1),
    "learning_time": ("learning time (equation 7)", 1),
    "learning_time_code": ("learning time (published code)", 1),
    "forgetting_events": ("forgetting events", 1),
    "ssft": ("second-split forgetting", -1),
    "first_learned_epoch": ("first epoch learned", 1),
    "last_learned_epoch": ("learned for good", 1),
    "confidence": ("mean confidence", -1),
    "area_under_margin": ("area under the margin", -1),
    "loss_sensitivity": ("loss sensitivity", 1),
    "trace_sum": ("curvature, exact trace", 1),
    "finite_difference_sum": ("curvature, published finite difference", 1),
    "el2n": ("EL2N", 1),
    "grand": ("GraNd", 1),
    "confident_learning": ("confident learning (cleanlab)", 1),
}
# Of these null is "never", which is as much as can be: not learned, or learned and forgotten until the end.
NEVER_IS_LARGEST = ("learning_time", "first_learned_epoch", "last_learned_epoch", "forgetting_events", "ssft")
_OF_ARM = tuple(column for column in ARM if column.name != "trial")
_SCORE = Column("score", "string", "which score, a column of memorization")


def _interval(name: str, description: str) -> tuple[Column, ...]:
    return (
        Column(name, "float64", description),
        Column(f"{name}_low", "float64", "95 % bootstrap interval over trials and images, lower end"),
        Column(f"{name}_high", "float64", "upper end"),
    )


MEMORIZATION = Table(
    "memorization",
    "How much every training image looks memorised, by each score: one row per trial and image.",
    (
        *ARM,
        IMAGE,
        *LABELS,
        Column("copy_of", "int32", "image whose pixels and label it has been given; null: its own"),
        Column("duplicate", "string", "exact or near: it is a copy or has one; null: neither"),
        Column("num_evaluations", "int32", "evaluations that the scores over training are made of"),
        Column("csl", "float64", "cumulative sample loss: sum over evaluations of its loss, nats"),
        Column("final_loss", "float64", "at the last evaluation, nats"),
        Column("learning_time", "float64", "CSL-Mem's equation 7, epochs; null where never learned"),
        Column("learning_time_code", "float64", "as the published code reads it, fraction"),
        Column("forgetting_events", "float64", "evaluations at which it was wrong after it had been right"),
        Column("ssft", "float64", "second-split forgetting time, epochs; null: not measured or never forgotten"),
        Column("first_learned_epoch", "float64", "first evaluation at which it was right; null: never"),
        Column("last_learned_epoch", "float64", "from this evaluation on it was always right; null: never"),
        Column("confidence", "float64", "probability of its given label, mean over evaluations"),
        Column("area_under_margin", "float64", "logit of its given label minus the largest other, mean"),
        Column("loss_sensitivity", "float64", "sum over evaluations of the norm of the input gradient"),
        Column("trace_sum", "float64", "sum over checkpoints of the exact trace of the input Hessian"),
        Column("finite_difference_sum", "float64", "sum over checkpoints of the published finite difference"),
        Column("el2n", "float64", "norm of probabilities minus one-hot label, mean over the early evaluations"),
        Column("grand", "float64", "norm of the gradient in the weights, mean over the early checkpoints"),
        Column("confident_learning", "float64", "1 minus cleanlab's label quality on out-of-fold predictions"),
    ),
)
MEMORIZATION_DETECTION = Table(
    "memorization_detection",
    "How well each score tells wrong labels and duplicates from other images.",
    (
        *_OF_ARM,
        Column("target", "string", "wrong label, exact duplicate or near duplicate"),
        Column("label_noise", "float64", "share of wrong labels, fraction"),
        Column("label_noise_kind", "string", "symmetric, pair_flip or asymmetric"),
        _SCORE,
        Column("num_trials", "int32", "trials"),
        Column("num_images", "int32", "images of each trial"),
        Column("num_positive", "int32", "of the target, in all trials"),
        *_interval("auroc", "area under the ROC curve, mean over trials; 0.5 is chance; null: undefined"),
        *_interval("average_precision", "area under the precision-recall curve, mean over trials"),
    ),
)
MEMORIZATION_TRUTH = Table(
    "memorization_truth",
    "Memorisation itself, P[right | image in training] - P[right | image left out], over trials with random subsets "
    "(Feldman & Zhang 2020).",
    (
        *_OF_ARM,
        IMAGE,
        *LABELS,
        Column("source", "string", "subsets: measured here; or the name of the file that was imported"),
        Column("num_in", "int32", "trials that trained on it; null: imported"),
        Column("num_out", "int32", "trials that did not; null: imported"),
        Column("correct_in", "float64", "share of these that are right"),
        Column("correct_out", "float64", "share of those that are right"),
        Column("memorization", "float64", "their difference; null where no trial is on one side"),
        Column("standard_error", "float64", "of the difference, binomial with Agresti's two added trials"),
    ),
)
MEMORIZATION_INFLUENCE = Table(
    "memorization_influence",
    "The training images that matter most for each test image: P[test image right | in] - P[right | left out].",
    (
        *_OF_ARM,
        IMAGE,
        Column("test_image_id", "int32", "row of the test image in the data set"),
        Column("influence", "float64", "difference of the shares"),
        Column("standard_error", "float64", "of it"),
        Column("place", "int16", "1 for the largest influence on the test image"),
    ),
)
MEMORIZATION_AGREEMENT = Table(
    "memorization_agreement",
    "How well each score agrees with memorisation itself.",
    (
        *_OF_ARM,
        Column("source", "string", "of the truth, as in memorization_truth"),
        _SCORE,
        Column("images", "string", "all, or top: the tenth that is memorised most (the papers' top 5,000 of 50,000)"),
        Column("num_images", "int32", "with a score and a truth"),
        *_interval("pearson", "correlation"),
        *_interval("spearman", "rank correlation"),
        *_interval("cosine", "similarity of the two vectors, as papers report it; not about their means"),
    ),
)
BOUNDARY_FORGETTING = Table(
    "boundary_forgetting",
    "Whether what an image showed before new classes came tells how much of it is forgotten when they come.",
    (
        STUDY,
        *ARM[1:],
        Column("boundary", "int16", "last epoch of the task before"),
        Column("until", "int16", "evaluation at which forgetting is measured"),
        Column("predictor", "string", "trace, loss, gradient_norm or csl"),
        Column("statistic", "string", "mean, max or slope over the evaluations of the task; csl: sum"),
        Column("num_images", "int32", "training images of classes introduced before"),
        Column("spearman", "float64", "with the change of loss; null: undefined"),
        Column("spearman_low", "float64", "95 % bootstrap interval over images, lower end"),
        Column("spearman_high", "float64", "upper end"),
        Column("quintile_forgetting", "list<float64>", "mean change of loss by fifth of the predictor, lowest first"),
    ),
)
MEMORIZATION_TABLES = (
    MEMORIZATION,
    MEMORIZATION_DETECTION,
    MEMORIZATION_TRUTH,
    MEMORIZATION_INFLUENCE,
    MEMORIZATION_AGREEMENT,
    BOUNDARY_FORGETTING,
)
