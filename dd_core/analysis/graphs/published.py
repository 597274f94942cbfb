"""How a variant differs from the published networks that claims are about."""

from dd_core.study.study import Study

PUBLISHED_WIDTH = 64
_PLANNING_GRAPHS = 1600  # the other domains' numbers differ from document to document
_BATCH_SIZES = (32, 64)  # of ten epochs and of a hundred
_RATE = 1e-4


def unlike_published(study: Study, variant: str, k: int) -> list[str]:
    """What is not as published, with the published value behind it: ``k = 16 (64)``; empty: nothing that is known."""
    own, data = study.variants[variant], study.data
    assert own.nsm is not None and data.graphs is not None
    rate, noise = own.optimizer.learning_rate, own.label_noise
    is_fewer = own.nsm.domain == "planning" and data.num_train != _PLANNING_GRAPHS
    features, scale = data.graphs.num_features, own.nsm.largest_log_scale
    found = {
        f"k = {k} ({PUBLISHED_WIDTH})": k != PUBLISHED_WIDTH,
        f"{data.num_train:,} graphs ({_PLANNING_GRAPHS:,})": is_fewer,
        f"{data.graphs.features} features (fresh)": data.graphs.features != "fresh",
        f"{features} features ({PUBLISHED_WIDTH})": features != PUBLISHED_WIDTH,
        "loops of a relation of their own (the last one)": own.nsm.loops != "last",
        f"log-scales up to {scale} (no bound)": scale is not None,
        f"learning rate {rate:g} ({_RATE:g})": rate != _RATE,
        f"batches of {own.batch_size} (64)": own.batch_size not in _BATCH_SIZES,
        f"{100 * noise:g} % wrong labels (none)": noise > 0,
    }
    return [words for words, it_is in found.items() if it_is]
