"""How noisy are costs from one backward pass, by which estimator?

    python -m tests.benchmarks estimators [--models NAME …] [--objective kl|margin_noise] [--seed 0]

Every component alone, pruned by 20, 35 and 50 %: the cost from 64 prefixes against the unbiased one from 448 others, as
the root mean square of the logarithm of their ratio over components and amounts, the common factor taken out. Square
of sums and sum of squares are the two of `compressor.sensitivity.shrinkage`, `steady` what it makes of them, `trace`
the Hessian's.
"""

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import EstimateRequest, Treatment
from compressor.sensitivity.shrinkage import steady_changes
from compressor_plugins.pruning.magnitude import Magnitude

from .heuristics import Heuristic, charge_options
from .runs import MODELS, open_run

FEW, MANY = 64, 512
SPARSITIES = (0.2, 0.35, 0.5)

Costs = Mapping[str, NDArray[np.float64]]
"""Component -> `[option]`."""


def compare_costs(costs: Costs, truth: Costs) -> float:
    """Root mean square of ln(cost / truth) without its mean."""
    logs = np.concatenate([np.log(costs[name] / truth[name]) for name in truth])
    return float(logs.std())


def measure_model(model: str, objective: str, seed: int) -> dict[str, Any]:
    """The error of every estimator."""
    with open_run(model, [Magnitude()], ["kl", objective], seed=seed, prefixes=MANY, proof_prefixes=1) as run:
        options = {
            name: [Treatment("magnitude", amount) for amount in SPARSITIES] for name in run.setup.model.components
        }
        truth = run.session.estimate(EstimateRequest(options, objective, start=FEW))
        few = run.session.estimate(EstimateRequest(options, objective, stop=FEW))
        trace = charge_options(run, EstimateRequest(options, objective), Heuristic.trace)
        expected = {name: estimate.changes.mean(axis=0) for name, estimate in truth.items()}
        steady = steady_changes(few)
        estimators: dict[str, Costs] = {
            "square of sums": {name: estimate.changes.mean(axis=0) for name, estimate in few.items()},
            "sum of squares": {name: np.mean(estimate.apart, axis=0) for name, estimate in few.items()},
            "steady": {name: values.mean(axis=0) for name, values in steady.items()},
            "trace": {name: estimate.changes.mean(axis=0) for name, estimate in trace.items()},
        }
        return {name: compare_costs(costs, expected) for name, costs in estimators.items()}


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--objective", default="kl", choices=["kl", "margin_noise"])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for model in options.models:
        yield {"model": model, **measure_model(model, options.objective, options.seed)}
