"""One backward pass against single trials: do its costs rank as trials do, and do costs add up?

    python -m tests.benchmarks singles [--models NAME …] [--seeds 0] [--text FILE] [--outliers 20]

Every component alone is treated and scored on 64 prefixes: pruned by 10, 30 and 50 %, int8 AbsMax by row, round to
nearest at 4 bits in groups of 32. Beside it stands the estimate of one backward pass over the same prefixes. `rank` is
Spearman's correlation over components, `ratio` the median of estimate by trial, `sum` the trials' sum by what treating
all components together costs, `one pass` the estimates' sum by the same. σ² is in logits², KL in nats per token.
"""

import argparse
from collections.abc import Iterator
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from compressor.commands.run import Run
from compressor.contracts import Compressor, EstimateRequest, Prefixes, Treatment
from compressor.sensitivity.shrinkage import steady_changes
from compressor.settings import DataSettings, DataSource
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.quantization.rtn import Rtn

from .runs import MODELS, open_run

OBJECTIVES = ("margin_noise", "kl")


def list_treatments(stored_bits: int) -> dict[str, Treatment]:
    """Name -> what is done to a component."""
    treatments = {f"{sparsity:.0%} pruned": Treatment("magnitude", sparsity) for sparsity in (0.1, 0.3, 0.5)}
    treatments["int8"] = Treatment("int8", 1 - 8 / stored_bits)
    treatments["4 bits"] = Treatment("rtn", 1 - 4 / stored_bits)
    return treatments


def measure_run(run: Run) -> Iterator[dict[str, Any]]:
    """A row for each treatment and objective."""
    components = run.setup.model.components.values()
    options = {c.name: list(list_treatments(c.stored_bits).values()) for c in components}
    estimates = {name: steady_changes(run.session.estimate(EstimateRequest(options, name))) for name in OBJECTIVES}
    evaluator = run.setup.evaluators[Prefixes.SEARCH]
    for index, text in enumerate(list_treatments(16)):
        plan = {name: choices[index] for name, choices in options.items()}
        trials = [plan, *({name: treatment} for name, treatment in plan.items())]
        together, *found = evaluator.score_all(trials)
        for name in OBJECTIVES:
            single = np.array([values[name][:, 0].mean() for values in found])
            whole = together[name][:, 0].mean()
            predicted = np.array([estimates[name][part][:, index].mean() for part in plan])
            yield {
                "treatment": text,
                "objective": name,
                "rank": float(spearmanr(single, predicted).statistic),
                "ratio": float(np.median(predicted / single)),
                "all together": float(whole),
                "sum": float(single.sum() / whole),
                "one pass": float(predicted.sum() / whole),
            }


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--text")
    parser.add_argument("--outliers", type=float)
    options = parser.parse_args(arguments)
    compressors: list[Compressor] = [Magnitude(), Int8(), Rtn()]
    data = DataSettings(source=DataSource.text, path=options.text) if options.text else DataSettings()
    for model in options.models:
        for seed in options.seeds:
            with open_run(model, compressors, OBJECTIVES, seed=seed, data=data, outliers=options.outliers) as run:
                yield from ({"model": model, "seed": seed, **row} for row in measure_run(run))
