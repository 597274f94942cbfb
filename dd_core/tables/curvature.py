"""Tables of curvature in the images, and in the weights."""

from dd_core.study.curvature_names import STEP_PATTERN
from dd_core.tables.columns import ARM, EPOCH, IMAGE, LABELS, SEEN, Column, OptionalColumns, Table

PER_IMAGE = Table(
    "per_image_curvature",
    "Curvature of the loss in input space for every training image at every checkpoint, of the classes seen by then.",
    (
        *ARM,
        EPOCH,
        *SEEN,
        IMAGE,
        *LABELS,
        Column("loss", "float64", "of the given label, as it is trained, nats"),
        Column("probability", "float64", "of the given label; null where outputs stand for none: squared error"),
        Column("method", "string", "estimator of the input Hessian: exact, top_directions or double_backward"),
        Column("gradient_norm", "float64", "norm of the input gradient g, nats per standardised pixel unit"),
        Column("gradient_curvature", "float64", "g'Hg/|g|^2, nats per squared standardised pixel unit"),
        Column("trace", "float64", "trace of the input Hessian H, same unit"),
        Column("trace_standard_error", "float64", "0 where the method is exact, same unit"),
        Column("frobenius_norm", "float64", "of the input Hessian, same unit"),
        Column("frobenius_norm_standard_error", "float64", "0 where the method is exact, same unit"),
        Column("largest_eigenvalue", "float64", "of the input Hessian, same unit"),
        Column("largest_eigenvalue_residual", "float64", "how far it may be off, 0 where exact, same unit"),
    ),
    optional=(
        OptionalColumns(
            f"fd_(norm|directional)_{STEP_PATTERN}(_standard_error)?",
            "float64",
            "published finite difference at the step h of the name, mean over random signs r (or its "
            "standard error): norm of the gradient's change, or r times it; normalised as the study says, by default a "
            "derivative per h (norm) or h^2 (directional)",
        ),
    ),
)
CURVATURE = Table(
    "curvature",
    "Per-image curvature summarised per checkpoint and trial, over all, clean and noisy training images.",
    (
        *ARM,
        EPOCH,
        *SEEN,
        Column("subset", "string", "all, clean (right label) or noisy (wrong label)"),
        Column("num_images", "int32", "images in the subset"),
        Column("mean_trace", "float64", "nats per squared standardised pixel unit, as all traces here"),
        *(
            Column(f"trace_{name}", "float64", f"{share} of the images have a smaller trace")
            for name, share in (("p05", "5 %"), ("p25", "25 %"), ("p50", "half"), ("p75", "75 %"), ("p95", "95 %"))
        ),
        Column("mean_frobenius_norm", "float64", "same unit"),
        Column("mean_largest_eigenvalue", "float64", "same unit"),
        Column("mean_gradient_norm", "float64", "nats per standardised pixel unit"),
        Column("mean_gradient_curvature", "float64", "of g'Hg/|g|^2, nats per squared standardised pixel unit"),
        Column("mean_trace_standard_error", "float64", "of single images, 0 where the method is exact, same unit"),
        Column("mean_loss", "float64", "nats"),
        Column(
            "auroc_trace",
            "float64",
            "probability that a noisy image has a larger trace than a clean one; null if all or none are noisy",
        ),
        *(
            Column(f"auroc_{name}", "float64", f"the same for {words}")
            for name, words in (
                ("frobenius_norm", "the Frobenius norm"),
                ("largest_eigenvalue", "the largest eigenvalue"),
                ("gradient_curvature", "the curvature along the gradient"),
                ("gradient_norm", "the gradient norm"),
                ("loss", "the loss"),
            )
        ),
        Column("source_sha256", "string", "SHA-256 of the per_image_curvature file summarised"),
    ),
    optional=(
        OptionalColumns(
            f"auroc_fd_(norm|directional)_{STEP_PATTERN}",
            "float64",
            "probability that a noisy image has a larger finite difference at that step than a clean one",
        ),
        OptionalColumns(f"mean_fd_(norm|directional)_{STEP_PATTERN}", "float64", "mean finite difference"),
    ),
)
HESSIAN_SPECTRA = Table(
    "hessian_spectra",
    "The Hessian of the training loss in the weights of one trial at one checkpoint.",
    (
        *ARM,
        EPOCH,
        Column("num_images", "int32", "training images the loss is averaged over"),
        Column("num_parameters", "int64", "of the layers looked at"),
        Column("layers", "list<string>", "names or patterns the Hessian is restricted to; empty: all layers"),
        Column("loss", "float64", "mean loss of these images, as it is trained, nats"),
        Column("largest_eigenvalue", "float64", "largest eigenvalue, nats per squared weight unit, as all of H here"),
        Column("largest_eigenvalue_residual", "float64", "|Hv - lambda v| of its unit vector, same unit"),
        Column("smallest_eigenvalue", "float64", "smallest eigenvalue, same unit"),
        Column("smallest_eigenvalue_residual", "float64", "|Hv - lambda v| of its unit vector, same unit"),
        Column("eigenvalues", "list<float64>", "the largest, falling, same unit"),
        Column("residuals", "list<float64>", "|Hv - lambda v| of each, same unit"),
        Column("trace", "float64", "exact trace, same unit; null where the network is not piecewise linear"),
        Column("layer_names", "list<string>", "layers with parameters"),
        Column("layer_traces", "list<float64>", "exact trace of each layer's diagonal block, same unit"),
        Column("trace_hutchinson", "float64", "Hutchinson's estimate of the trace, same unit"),
        Column("trace_hutchinson_standard_error", "float64", "of it"),
        Column("trace_hutch_plus_plus", "float64", "Hutch++ estimate of the trace, same unit"),
        Column("trace_hutch_plus_plus_standard_error", "float64", "of it"),
        Column("density_eigenvalues", "list<float64>", "grid of the spectral density, same unit"),
        Column("density", "list<float64>", "spectral density at the grid, integral 1, per that unit"),
        Column("gradient_norm", "float64", "norm of the gradient of the loss, nats per weight unit"),
        Column("gradient_sharpness", "float64", "g'Hg/|g|^2, same unit as H"),
        Column("gradient_overlap", "float64", "share of |g|^2 in the span of the largest eigenvectors"),
        Column("gradient_variance", "float64", "trace of the covariance of single images' gradients"),
        Column("image_gradient_norm_mean", "float64", "of single images' gradients, nats per weight unit"),
        Column("image_gradient_norm_median", "float64", "the same"),
        Column("image_gradient_norm_max", "float64", "the same"),
        Column("seconds", "float64", "wall time of the trial, s"),
    ),
)
CURVATURE_TABLES = (PER_IMAGE, CURVATURE, HESSIAN_SPECTRA)
