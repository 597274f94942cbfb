"""Graph classification: the problems of a domain, and losses of NSM networks."""

import numpy as np
import torch
from torch import Tensor

from dd_core.data import randomness
from dd_core.data.graphs.check import check_problems
from dd_core.data.graphs.load import load_problems
from dd_core.data.trials import trial_data
from dd_core.models.nsm.batch import GraphBatch, NSMOutputs
from dd_core.study.study import Study
from dd_core.tasks.base import Splits
from dd_core.tasks.graph_sequence import GraphSequence
from dd_core.tasks.losses import Loss

# What the reconstruction of each level counts, the input's first (research-developer/nsm, hierarchical.py).
LEVEL_SHARES = (0.7, 0.3)
# What the fused logits and each of two passes count (research-developer/nsm, dual pass).
FUSED_SHARE, PASS_SHARE = 0.5, 0.25
# Epochs that are trained count from 1; what evaluations and monitors see is drawn for this one.
_EVALUATION = 0


class GraphExamples:
    """The graphs of one trial of a variant, resident on a device; see ``dd_core.tasks.base.Examples``.

    Inputs are ``GraphBatch``es; targets are labels, int64 (B, 1). A whole epoch is put in order at once.
    """

    def __init__(self, study: Study, variant: str, trials: list[int], device: torch.device, dtype: torch.dtype):
        """Make or load the problems.

        Args:
            study: gives the numbers of graphs, their labels and features, and the seed.
            variant: gives domain and label noise.
            trials: number of the trial, one: graph networks are not stacked.
            device: where to.
            dtype: floating point type of the batches.

        Raises:
            UserError: nothing can be learned from them, or the network does not know all their relations.
        """
        (trial,) = trials
        graphs, settings = study.data.graphs, study.variants[variant].nsm
        assert graphs is not None and settings is not None
        own = trial_data(study, variant, trial)
        self.data = [own]
        self.num_train, self.num_validation = len(own.train_ids), len(own.validation_ids)
        self.whole = Splits(self.num_train, self.num_validation, len(own.test_ids))
        self._seed, self._trial, self._is_fresh = study.seed, trial, graphs.features == "fresh"
        problems = load_problems(graphs, settings.domain, study.seed, study.num_evaluated_images)
        check_problems(problems, settings.relations)
        labels = torch.from_numpy(own.given_labels).to(device)
        ordered = GraphSequence.of(problems, device, dtype).pick(own.image_ids).with_labels(labels)
        self._evaluated = self._with_noise(ordered, _EVALUATION)

    def _with_noise(self, graphs: GraphSequence, epoch: int) -> GraphSequence:
        """Where features are not fixed, with standard normal ones for every node, the same on every device."""
        if not self._is_fresh:
            return graphs
        seed = randomness.torch_seed(self._seed, self._trial, "node_features", epoch)
        shape = graphs.num_nodes, graphs.features.shape[1]
        return graphs.with_features(torch.randn(shape, generator=torch.Generator().manual_seed(seed)))

    def plan(self, epoch: int) -> GraphSequence:
        """All training graphs in the order of an epoch."""
        order = randomness.generator(self._seed, self._trial, "order", epoch).permutation(self.num_train)
        return self._with_noise(self._evaluated.pick(order), epoch)

    def batch(self, plan: GraphSequence, start: int, stop: int) -> tuple[GraphBatch, Tensor]:
        """Training graphs ``start:stop`` of the epoch, and their given labels."""
        return plan.cut(start, stop)

    def at(self, positions: Tensor) -> tuple[GraphBatch, Tensor]:
        """Training graphs at ``positions`` (B, 1), as they are evaluated; waits for a GPU, to learn their sizes."""
        return self._evaluated.pick(positions[:, 0].cpu().numpy()).cut(0, len(positions))

    def splits(self, epoch: int) -> Splits:
        """All graphs."""
        return self.whole

    def places(self, splits: Splits) -> np.ndarray:
        """Those of all graphs."""
        return np.arange(splits.num_examples)

    def evaluated(self, splits: Splits, start: int, stop: int) -> tuple[GraphBatch, Tensor]:
        """Graphs ``start:stop`` in the order of ``TrialData.image_ids``, with given labels, or true ones."""
        return self._evaluated.cut(start, stop)


class GraphClassification:
    """A label for every graph and its reconstruction; see ``dd_core.tasks.base.Task``.

    Outputs are ``NSMOutputs`` of a stacked network, (B, T, ...); targets are labels, int64 (B, T). What is trained is
    ``classification + cycle_weight * (.7 first level + .3 second)``; evaluations record the classification alone.
    """

    def __init__(self, loss: Loss, cycle_weight: float):
        """``loss``: of a graph, from one network's logits; ``cycle_weight``: lambda."""
        self._loss, self._cycle_weight = loss, cycle_weight

    def restrict(self, num_classes: int) -> None:
        """All classes are there from the beginning."""

    def losses(self, outputs: NSMOutputs, targets: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """The loss that is trained, (B, T); of two passes, half of it is of the fused logits."""
        if dtype is not None:
            outputs = NSMOutputs(*(tensor.to(dtype) for tensor in outputs))
        loss = self._classification(outputs.logits, targets)
        if outputs.passes.shape[2]:
            passes = [self._classification(logits, targets) for logits in outputs.passes.unbind(2)]
            loss = FUSED_SHARE * loss + PASS_SHARE * sum(passes[1:], passes[0])
        first, second = outputs.cycle_loss.unbind(2)
        return loss + self._cycle_weight * (LEVEL_SHARES[0] * first + LEVEL_SHARES[1] * second)

    def _classification(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._loss.losses(logits.flatten(0, 1), targets.flatten()).view(targets.shape)

    def scores(self, outputs: NSMOutputs, targets: Tensor) -> Tensor:
        """The loss that evaluations record, of the (fused) logits, (B, T)."""
        return self._loss.scores(outputs.logits.flatten(0, 1), targets.flatten()).view(targets.shape)

    def hits(self, outputs: NSMOutputs, targets: Tensor) -> Tensor:
        """Whether the largest logit is that of the label."""
        return outputs.logits.argmax(2) == targets

    def value(self, name: str, outputs: NSMOutputs, targets: Tensor) -> Tensor:
        """A column of ``dd_core.study.graphs.GRAPH_VALUES``, (B, T); ``probability`` is that of label 1."""
        if name == "probability":
            return outputs.logits.softmax(2)[..., 1]
        if name.startswith("cycle_loss_"):
            return outputs.cycle_loss[..., int(name[-1]) - 1]
        return {"kept_share": outputs.kept_share, "pooling_entropy": outputs.pooling_entropy}[name]
