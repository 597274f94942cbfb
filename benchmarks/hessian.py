"""The Hessian in the parameters against PyHessian 0.1 and curvlinops-for-pytorch 3.0.1, on one thread.

Same network (trained for a hundred steps on digits), same images in the same batches: all in one, and in several. All
work is interleaved; a ratio is the peer's seconds over ours, so above 1 we are faster. Peers:

- lambda max to a true residual ||Hv - lambda v|| of 1 % of lambda max. PyHessian's power iteration gets exactly as many
  iterations as that takes, found beforehand (its own stopping rule looks at lambda alone); curvlinops goes through
  scipy's eigsh with that tolerance and the number of basis vectors that needs the fewest products. Ours
  ends with one more product, which measures the residual.
- the trace: ours is exact; the peers take as many of Hutchinson's probes as a standard error of 5 % needs (at most 20
  are run, and their time multiplied).
- the spectral density: stochastic Lanczos quadrature with the same number of probes and steps. PyHessian's calls
  torch.eig, which is gone from PyTorch: here it is given back to it. Accuracy is the Wasserstein distance between the
  quadrature and the true spectrum of a perceptron small enough to have one, median over seeds, in units of lambda max.

Both are dev dependencies of this project.
"""

import math
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.stats
import torch
from common import interleaved, median_ratio, parse_arguments, write_json
from curvlinops import HessianLinearOperator
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from curvlinops.trace.hutchinson import hutchinson_trace
from pyhessian import hessian as pyhessian
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn

from dd_core.curvature.parameter_space import HessianOperator, KrylovSpace, exact_trace, extreme_eigenpairs
from dd_core.curvature.parameter_space.lanczos import grow, random_signs
from dd_core.data.datasets import load
from dd_core.jobs.worker import prepare_process
from dd_core.models.build import build

RESIDUAL = 0.01
STANDARD_ERROR = 0.05
PROBES, STEPS = 4, 20
MOST_PROBES = 20


def trained(model: nn.Module, images: Tensor, labels: Tensor) -> nn.Module:
    """A hundred steps of Adam, so that the spectrum has its outliers."""
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(100):
        rows = torch.randint(len(images), (32,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model.eval()


def digits(number: int) -> tuple[Tensor, Tensor]:
    """Standardised digits (number, 1, 8, 8) and their labels."""
    data = load("digits")
    images = torch.from_numpy(data.images[:number]).float().permute(0, 3, 1, 2)
    return (images - images.mean()) / images.std(), torch.from_numpy(data.labels[:number]).long()


class Case:
    """One network and its images in batches, as each library wants them."""

    def __init__(self, model: nn.Module, images: Tensor, labels: Tensor, num_batches: int):
        """Cut the images into batches."""
        self.model, self.images, self.labels = model, images, labels
        self.size = math.ceil(len(images) / num_batches)
        self.batches = list(zip(images.split(self.size), labels.split(self.size), strict=True))

    def ours(self) -> HessianOperator:
        """Our operator."""
        return HessianOperator(self.model, self.images, self.labels, batch_size=self.size)

    def pyhessian(self) -> Any:
        """PyHessian's object, in its faster mode where there is one batch: it keeps the graph then."""
        self.model.zero_grad(set_to_none=True)
        data = {"data": self.batches[0]} if len(self.batches) == 1 else {"dataloader": self.batches}
        if len(self.batches) > 1:  # PyHessian reads .grad once before it multiplies
            nn.functional.cross_entropy(self.model(self.images[:1]), self.labels[:1]).backward()
        return pyhessian(self.model, nn.CrossEntropyLoss(), cuda=False, **data)

    def curvlinops(self) -> HessianLinearOperator:
        """Curvlinops' operator."""
        parameters = list(self.model.parameters())
        return HessianLinearOperator(
            self.model, nn.CrossEntropyLoss(), parameters, self.batches, check_deterministic=False
        )


# Largest eigenvalue


def our_largest(case: Case, seed: int = 0) -> tuple[float, float]:
    """Lambda max and its relative residual."""
    operator, generator = case.ours(), torch.Generator().manual_seed(seed)
    space = KrylovSpace(random_signs(1, operator.size, generator)[0], 100, generator)
    pairs = extreme_eigenpairs(operator, space, 1, RESIDUAL, both_ends=False)
    return float(pairs.largest[0]), float(pairs.residuals[0] / abs(pairs.largest[0]))


def pyhessian_largest(case: Case, iterations: int, seed: int = 0) -> tuple[float, Tensor]:
    """Lambda max and its vector after so many iterations of the power method."""
    torch.manual_seed(seed)
    (value,), (vector,) = case.pyhessian().eigenvalues(maxIter=iterations, tol=0, top_n=1)
    return value, torch.cat([part.reshape(-1) for part in vector]).detach()


def curvlinops_largest(case: Case, num_vectors: int, seed: int = 0) -> tuple[float, Tensor]:
    """Lambda max and its vector by ARPACK with so many basis vectors."""
    operator = case.curvlinops().to_scipy(dtype=np.float32)
    start = np.random.default_rng(seed).standard_normal(operator.shape[0]).astype(np.float32)
    values, vectors = eigsh(operator, k=1, which="LA", tol=RESIDUAL, v0=start, ncv=num_vectors)
    return float(values[0]), torch.from_numpy(vectors[:, 0])


def relative_residual(case: Case, value: float, vector: Tensor) -> float:
    """||Hv - lambda v|| / lambda for the unit vector."""
    vector = vector / vector.norm()
    return float((case.ours().matvec(vector) - value * vector).norm()) / abs(value)


def iterations_needed(case: Case) -> int:
    """Products of the power method, until the residual is as small as wanted; from the sequence of its vectors."""
    operator = case.ours()
    torch.manual_seed(0)
    vector = torch.cat([torch.randn(p.shape).reshape(-1) for p in case.model.parameters()])
    vector /= vector.norm()
    for iteration in range(1, 500):
        product = operator.matvec(vector)
        value = float(vector @ product)
        if float((product - value * vector).norm()) <= RESIDUAL * abs(value):
            return iteration
        vector = product / product.norm()
    return 500


def basis_vectors(case: Case) -> int:
    """Vectors of ARPACK with which it needs the fewest products; with few it may find a smaller eigenvalue."""
    operator, products, found = case.ours(), {}, {}
    for num_vectors in (5, 8, 12, 16, 20, 30):
        count = []

        def multiply(vector: np.ndarray, count: list[int] = count) -> np.ndarray:
            count.append(1)
            return operator.matvec(torch.from_numpy(vector).float()).numpy()

        linear = LinearOperator((operator.size, operator.size), multiply, dtype=np.float32)
        start = np.random.default_rng(0).standard_normal(operator.size).astype(np.float32)
        (found[num_vectors],), _ = eigsh(linear, k=1, which="LA", tol=RESIDUAL, v0=start, ncv=num_vectors)
        products[num_vectors] = len(count)
    right = [number for number in found if found[number] >= (1 - RESIDUAL) * max(found.values())]
    return min(right, key=products.__getitem__)


# Density


def our_quadrature(case: Case, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """Nodes and weights per probe."""
    operator, generator = case.ours(), torch.Generator().manual_seed(seed)
    spaces = [KrylovSpace(start, STEPS, generator) for start in random_signs(PROBES, operator.size, generator)]
    while not spaces[0].is_full:
        grow(operator, spaces)
    return [space.quadrature() for space in spaces]


def pyhessian_quadrature(case: Case, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same by PyHessian."""
    torch.manual_seed(seed)
    nodes, weights = case.pyhessian().density(iter=STEPS, n_v=PROBES)
    return [(np.array(n), np.array(w)) for n, w in zip(nodes, weights, strict=True)]


def curvlinops_quadrature(case: Case, seed: int = 0) -> list[tuple[np.ndarray, np.ndarray]]:
    """The same by curvlinops."""
    torch.manual_seed(seed)
    np.random.seed(seed)
    operator = case.curvlinops()
    runs = [fast_lanczos(operator, STEPS) for _ in range(PROBES)]
    return [(np.asarray(values), np.asarray(vectors)[0] ** 2) for values, vectors in runs]


def _eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """torch.eig of old, for a symmetric matrix: eigenvalues as (n, 2), real and imaginary."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def density_errors(seeds: int) -> dict[str, float]:
    """Median distance of each library's quadrature from a spectrum that is known."""
    torch.manual_seed(0)
    images, labels = digits(100)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 10))
    case = Case(trained(model, images, labels), images, labels, 1)
    exact = HessianOperator(model, images, labels, dtype=torch.float64)
    spectrum = torch.linalg.eigvalsh(exact.matmat(torch.eye(exact.size, dtype=torch.float64))).numpy()
    libraries = {"ours": our_quadrature, "PyHessian": pyhessian_quadrature, "curvlinops": curvlinops_quadrature}
    return {
        name: statistics.median(
            scipy.stats.wasserstein_distance(
                spectrum, np.concatenate([n for n, _ in pairs]), None, np.concatenate([w for _, w in pairs])
            )
            / spectrum[-1]
            for pairs in (quadrature(case, seed) for seed in range(seeds))
        )
        for name, quadrature in libraries.items()
    }


# The table


def probes_needed(case: Case, trace: float, quick: bool) -> int:
    """Products of Hutchinson's estimator, for the wanted standard error, from the spread of a few dozen."""
    operator = case.ours()
    signs = random_signs(32 if quick else 128, operator.size, torch.Generator().manual_seed(1))
    samples = (signs * operator.matmat(signs)).sum(1)
    return max(2, math.ceil((float(samples.std()) / (STANDARD_ERROR * trace)) ** 2))


def measure(case: Case, repeats: int, quick: bool) -> dict[str, dict[str, list[float]]]:
    """Seconds of every library for every quantity; accuracies are printed on the way."""
    iterations, num_vectors = iterations_needed(case), basis_vectors(case)
    value, residual = our_largest(case)
    theirs = {"PyHessian": pyhessian_largest(case, iterations), "curvlinops": curvlinops_largest(case, num_vectors)}
    print(f"  lambda max: ours {value:.5g}, residual {residual:.1e}", end="")
    for name, pair in theirs.items():
        print(f"; {name} {pair[0]:.5g}, residual {relative_residual(case, *pair):.1e}", end="")
    trace = float(exact_trace(case.model, case.images).per_image.mean())
    reference = float(exact_trace(case.model.double(), case.images.double(), dtype=torch.float64).per_image.mean())
    case.model.float()
    probes = probes_needed(case, trace, quick)
    run = min(probes, MOST_PROBES)
    print(f"\n  PyHessian needs {iterations} iterations; a 5 % standard error of the trace takes {probes} probes")
    print(f"  trace: ours {trace:.6g}, off by {abs(trace / reference - 1):.1e}")
    candidates: dict[str, dict[str, Callable[[], object]]] = {
        "largest_eigenvalue": {
            "ours": lambda: our_largest(case),
            "PyHessian": lambda: pyhessian_largest(case, iterations),
            "curvlinops": lambda: curvlinops_largest(case, num_vectors),
        },
        "trace": {
            "ours": lambda: exact_trace(case.model, case.images),
            # Its stopping rule fires at once where the running mean is negative, so it gets one that never does.
            "PyHessian": lambda: case.pyhessian().trace(maxIter=run, tol=-math.inf),
            "curvlinops": lambda: hutchinson_trace(case.curvlinops(), run),
        },
        "density": {
            "ours": lambda: our_quadrature(case),
            "PyHessian": lambda: pyhessian_quadrature(case),
            "curvlinops": lambda: curvlinops_quadrature(case),
        },
    }
    seconds = {quantity: interleaved(runs, repeats) for quantity, runs in candidates.items()}
    for name in theirs:
        seconds["trace"][name] = [second * probes / run for second in seconds["trace"][name]]
    return seconds


def main() -> None:
    """Run and print."""
    arguments = parse_arguments(__doc__)
    prepare_process(threads=1)
    warnings.filterwarnings("ignore")  # of the peers: backward with create_graph, torch.jit, non-writable arrays
    torch.eig = _eig  # type: ignore[attr-defined]
    repeats = arguments.repeats or (2 if arguments.quick else 7)
    number, widths, cuts = (40, (2,), (1, 2)) if arguments.quick else (400, (4, 8, 16), (1, 4))
    images, labels = digits(number)
    ratios: dict[str, float] = {}
    for k in widths:
        torch.manual_seed(0)
        model = trained(build("preact_resnet10", k, 1, 10), images, labels)
        for num_batches in cuts:
            print(f"ResNet10k, k = {k}, {number} digits in {num_batches} batches")
            seconds = measure(Case(model, images, labels, num_batches), repeats, arguments.quick)
            for quantity, by_library in seconds.items():
                print(f"  {quantity:10s} ours {statistics.median(by_library['ours']):8.3f} s", end="")
                for peer in ("PyHessian", "curvlinops"):
                    median, low, high = median_ratio(by_library[peer], by_library["ours"])
                    ratios[f"{quantity}_k{k}_batches{num_batches}_{peer}"] = median
                    print(f"   {peer} / ours {median:6.2f} ({low:.2f} to {high:.2f})", end="")
                print(flush=True)
    errors = density_errors(3 if arguments.quick else 15)
    print("distance of the quadrature from a known spectrum, / lambda max:", end="")
    print("".join(f"   {name} {error:.2e}" for name, error in errors.items()))
    write_json(arguments.json, ratios, density_errors=errors)


if __name__ == "__main__":
    main()
