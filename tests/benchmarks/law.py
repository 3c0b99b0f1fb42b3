"""The margin law against counting: what one number, and one backward pass, say of the divergence.

    python -m tests.benchmarks law [--models NAME …] [--seeds 0 1 2] [--proof 256]
                                   [--text FILE] [--tokens 64] [--dtype bfloat16] [--outliers 20]

Plans treat every matrix alike: magnitude pruning from 5 to 60 %, int8 AbsMax by row and by matrix, round to nearest in
groups of 32 at 8 to 2 bits. Each is counted on fresh prefixes. Beside it stand the law from the noise measured there,
with eight runners-up (`law`), with one (`law, k=1`), with other weights of the positions (`law, equal`, `law, c=…`),
and from σ as a backward pass over 64 other prefixes tells it, before anything was treated: with the base's margins on
the prefixes that are counted (`one pass`), and with those of the other prefixes (`forecast`), as `compressor forecast`
has it.

`kurtosis` and `drift` are those of δ over all positions; `noise, close` and `noise, wide` are the root mean square of
δ in the quarter of positions where the base's margin is smallest, and largest, by that of all.

`prefixes saved` is how many times more prefixes counting needs for the law's interval: with margins of the same
prefixes (`same`), and where the base's margins are known from all prefixes and only σ is measured (`σ`).
"""

import argparse
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.commands.run import Run
from compressor.contracts import Compressor, EstimateRequest, Metric, Plan, Prefixes, Readout, Treatment
from compressor.evaluation.bootstrap import draw_resamples, summarize
from compressor.evaluation.evaluator import SequenceValues
from compressor.sensitivity.margin_law import expected_sdt, read_table, tabulate_fdt
from compressor.sensitivity.shrinkage import steady_changes
from compressor.settings import DataSettings, DataSource, DType
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.margin_noise import MarginNoise, read_margins
from compressor_plugins.metrics.sdtm import Sdtm
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int8 import Granularity, Int8
from compressor_plugins.quantization.rtn import Rtn

from .runs import MODELS, open_run

VARIANTS = {"equal": math.inf, "c=0.1": 0.1, "c=0.5": 0.5, "c=1": 1.0}
"""Other weights of the positions: name -> closeness."""
SPARSITIES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
WIDTHS = (8, 6, 5, 4, 3, 2)
CLOSE = 0.15

Vector = NDArray[np.float64]


class Shift(MarginNoise):
    """δ itself, at every position."""

    def sequence_values(self, candidate: Readout, base: Readout) -> Tensor:
        ids, margins = base.runners_up(1)
        return (read_margins(candidate, ids) - margins)[..., 0].double()


METRICS: dict[str, Metric] = {"fdtm": Fdtm(), "sdtm": Sdtm(), "margin_noise": MarginNoise()}
METRICS["shift"] = Shift()
METRICS |= {name: MarginNoise(closeness=closeness) for name, closeness in VARIANTS.items()}


class MatrixInt8(Int8):
    """int8 with one scale for the matrix, under a name of its own."""

    name = "int8_matrix"


def list_plans(run: Run) -> dict[str, Plan]:
    """Name -> a plan that treats every component alike."""
    components = run.setup.model.components.values()

    def all_alike(compressor: str, kept_bits: float | None, amount: float = 0.0) -> Plan:
        amounts = {c.name: amount if kept_bits is None else 1 - kept_bits / c.stored_bits for c in components}
        return {name: Treatment(compressor, value) for name, value in amounts.items()}

    plans = {f"{sparsity:.0%} pruned": all_alike("magnitude", None, sparsity) for sparsity in SPARSITIES}
    plans |= {"int8, row": all_alike("int8", 8), "int8, matrix": all_alike("int8_matrix", 8)}
    return plans | {f"{bits} bits, groups of 32": all_alike("rtn", bits) for bits in WIDTHS}


def make_compressors() -> list[Compressor]:
    return [Magnitude(), Int8(), MatrixInt8(granularity=Granularity.tensor), Rtn(bits=list(WIDTHS))]


def read_base_margins(run: Run, which: Prefixes) -> Tensor:
    """`[sequence, position, runner]` of eight runners-up."""
    reference = run.setup.evaluators[which].reference
    batches = reference.batches()
    return torch.cat([reference.base_readout(start, len(rows)).runners_up(8)[1] for start, rows in batches])


def estimate_noise(run: Run, plans: dict[str, Plan]) -> dict[str, Vector]:
    """`[sequence]` of each plan: the sum over components of σ² by one backward pass on the search prefixes."""
    options = {name: [plan[name] for plan in plans.values()] for name in run.setup.model.components}
    found = run.session.estimate(EstimateRequest(options, "margin_noise"))
    squares = np.sum(list(steady_changes(found).values()), axis=0)
    return {name: squares[:, index] for index, name in enumerate(plans)}


def apply_law(table: Vector, squares: Vector) -> float:
    """Expected FDT from the law's table of some prefixes and σ² of the same or of others."""
    return float(read_table(table.mean(axis=0), np.sqrt(squares.mean())))


def measure_plans(
    model: str, seed: int, proof: int, data: DataSettings, dtype: DType, outliers: float | None
) -> Iterator[dict[str, Any]]:
    """A row for each plan."""
    with open_run(
        model, make_compressors(), METRICS, seed=seed, data=data, dtype=dtype, outliers=outliers, proof_prefixes=proof
    ) as run:
        plans = list_plans(run)
        predicted = estimate_noise(run, plans)
        searched = tabulate_fdt(read_base_margins(run, Prefixes.SEARCH)).numpy()
        margins = read_base_margins(run, Prefixes.PROOF)
        proven = tabulate_fdt(margins).numpy()
        trials = [*plans.values()]
        for name, found in zip(plans, run.setup.evaluators[Prefixes.PROOF].score_all(trials), strict=True):
            forecast, here = apply_law(searched, predicted[name]), apply_law(proven, predicted[name])
            row = {"model": model, "seed": seed, "plan": name, "σ, one pass": float(np.sqrt(predicted[name].mean()))}
            row |= compare_law(margins, found, seed) | {"one pass": here, "forecast": forecast}
            row |= describe_shift(found["shift"], margins[..., 0].numpy())
            yield row | judge(here, found, "one pass") | judge(forecast, found, "forecast")


def compare_law(margins: Tensor, found: SequenceValues, seed: int) -> dict[str, Any]:
    """Count and law on the same prefixes."""
    table, single = tabulate_fdt(margins).numpy(), tabulate_fdt(margins[..., :1].contiguous()).numpy()
    counted, squares = found["fdtm"][:, 0], found["margin_noise"][:, 0]
    drawn = draw_resamples(len(counted), seed)
    spread = np.var(counted[drawn].mean(axis=1))
    noise = np.sqrt(squares[drawn].mean(axis=1))
    law = apply_law(table, squares)
    return (
        {
            "σ": float(np.sqrt(squares.mean())),
            "FDT": count(found),
            "law": law,
            "law, k=1": apply_law(single, squares),
            **{f"law, {name}": apply_law(table, found[name][:, 0]) for name in VARIANTS},
            "SDT": float(found["sdtm"].mean()),
            "SDT, law": float(expected_sdt(margins, float(np.sqrt(squares.mean()))).mean()),
            "saved, same": float(spread / np.var(read_table(table[drawn].mean(axis=1), noise))),
            "saved, σ": float(
                spread / np.var(read_table(np.broadcast_to(table.mean(axis=0), (*noise.shape, table.shape[1])), noise))
            ),
        }
        | judge(law, found, "law")
        | judge(apply_law(table, found["equal"][:, 0]), found, "law, equal")
    )


def describe_shift(shift: Vector, margins: Vector) -> dict[str, float]:
    """Moments of δ `[sequence, position]`, and where it is large."""
    close, wide = np.quantile(margins, [0.25, 0.75])
    size = np.sqrt(np.mean(shift**2))
    return {
        "kurtosis": float(np.mean((shift - shift.mean()) ** 4) / shift.var() ** 2),
        "drift": float(shift.mean()),
        "noise, close": float(np.sqrt(np.mean(shift[margins <= close] ** 2)) / size),
        "noise, wide": float(np.sqrt(np.mean(shift[margins >= wide] ** 2)) / size),
    }


def count(found: SequenceValues) -> list[float]:
    """Counted FDT with its interval."""
    score = summarize(METRICS["fdtm"], found["fdtm"])
    return [score.mean, score.low, score.high]


def judge(law: float, found: SequenceValues, name: str) -> dict[str, bool]:
    """Is it within 15 % of the count, or inside the count's interval?"""
    counted, low, high = count(found)
    return {f"{name} meets": abs(law - counted) <= CLOSE * counted or low <= law <= high}


def summarize_rows(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """How often the law meets the count, for plans with a counted FDT of at least 5, by model and together."""
    for model in [*dict.fromkeys(row["model"] for row in rows), "all"]:
        chosen = [row for row in rows if model in (row["model"], "all") and row["FDT"][0] >= 5]
        if not chosen:
            continue
        yield {
            "model": model,
            "plans": len(chosen),
            **{key: float(np.mean([row[key] for row in chosen])) for key in chosen[0] if key.endswith("meets")},
            **{key: float(np.median([row[key] for row in chosen])) for key in chosen[0] if key.startswith("saved")},
            **{
                f"{key}, rms": float(np.sqrt(np.mean([(row[key] / row["FDT"][0] - 1) ** 2 for row in chosen])))
                for key in ("law", *(f"law, {name}" for name in VARIANTS))
            },
        }


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--proof", type=int, default=256)
    parser.add_argument("--text", help="prefixes from this file in place of samples of the model")
    parser.add_argument("--tokens", type=int, default=64, help="of a continuation")
    parser.add_argument("--outliers", type=float, help="grow six channels behind every norm so many times")
    parser.add_argument("--dtype", choices=[dtype.name for dtype in DType], default="auto")
    options = parser.parse_args(arguments)
    data = DataSettings(continuation_tokens=options.tokens)
    if options.text:
        data.source, data.path = DataSource.text, options.text
    rows = []
    for model in options.models:
        for seed in options.seeds:
            for row in measure_plans(model, seed, options.proof, data, DType[options.dtype], options.outliers):
                rows.append(row)
                yield row
    yield from summarize_rows(rows)
