"""Beam search over int4, all depths: exact, and with every shortcut; what it costs and what it finds.

    python -m tests.benchmarks beam [--models NAME …] [--seeds 0] [--width 10] [--proof 256]

Which matrices may go to int4 (groups of 32), one more at every depth. `exact` ranks by FDT75 on 64 prefixes of 32 + 64
tokens and measures every plan; the others measure fewer: `bounds` on the same prefixes and ranker, `screen` with
predictions of one backward pass for KL besides, and `law` ranks by the expected FDT on 16 prefixes, or on 8, in place
of the counted one on 64, with a tolerance of 3 %. The best plan of some depths is then counted on fresh prefixes, with
95 % intervals of FDT75.
"""

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from compressor.commands.run import Run
from compressor.contracts import KeepRequest, Prefixes
from compressor.search.top_trials import TopTrials
from compressor.settings import SweepMode, SweepSettings
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.schedules.beam.beam import Beam
from compressor_plugins.schedules.targets import Statistic

from .allocation import PREFIXES, limit_prefixes
from .runs import MODELS, Undecided, decide, open_run

DEPTHS = (0.25, 0.5, 0.75)
"""Shares of the components after which plans are counted."""


@dataclass(frozen=True)
class Way:
    """How a beam is searched."""

    settings: SweepSettings
    ranker: str = "fdtm"
    statistic: Statistic = Statistic.p75
    prefixes: int = PREFIXES


APPROXIMATE = SweepMode.approximate
LAW = SweepSettings(APPROXIMATE, screen="kl", tolerance=0.03)
WAYS = {
    "plain": Way(SweepSettings(SweepMode.plain)),
    "exact": Way(SweepSettings(SweepMode.exact)),
    "bounds": Way(SweepSettings(APPROXIMATE)),
    "bounds, screen": Way(SweepSettings(APPROXIMATE, screen="kl")),
    "law": Way(LAW, "expected_fdtm", Statistic.mean, 16),
    "law, 8 prefixes": Way(LAW, "expected_fdtm", Statistic.mean, 8),
}


def search(run: Run, way: Way, width: int) -> tuple[KeepRequest, float, float]:
    """What the schedule would keep after all depths, and what it took: passes over 64 prefixes, CPU seconds."""
    began = time.process_time()
    session = run.session
    session.ledger.open_round(1)
    session.top_trials = TopTrials(session.scorer, session.estimator, way.settings)
    run.setup.evaluators[Prefixes.SEARCH].mode = way.settings.mode
    kept = decide(Undecided(session), Beam(width=width, ranker=way.ranker, statistic=way.statistic))
    return kept, session.ledger.passes * way.prefixes / PREFIXES, time.process_time() - began


def measure_model(model: str, seed: int, width: int, proof: int, names: list[str]) -> Iterator[dict[str, Any]]:
    """A row for each way."""
    metrics = ["fdtm", "kl", "expected_fdtm"]
    with open_run(model, [Int4()], metrics, seed=seed, prefixes=PREFIXES, proof_prefixes=proof) as run:
        whole = run.setup.evaluators[Prefixes.SEARCH]
        for name in names:
            way = WAYS[name]
            limit_prefixes(run, whole, way.prefixes)
            kept, passes, seconds = search(run, way, width)
            row = {"model": model, "seed": seed, "way": name, "trials": run.session.ledger.trials, "passes": passes}
            row |= {"CPU s": seconds, "saved": "".join(run.session.ledger.approximation.describe())}
            depths = [round(share * len(run.setup.model.components)) for share in DEPTHS]
            trials = [kept.curve[depth - 1].plan for depth in depths]
            for depth, found in zip(
                depths, run.setup.evaluators[Prefixes.PROOF].score_all(trials, ["fdtm", "kl"]), strict=True
            ):
                scores = run.session.scorer.summarize(found)
                row[f"FDT75 at {depth}"] = [getattr(scores["fdtm"], field) for field in ("p75", "p75_low", "p75_high")]
                row[f"KL at {depth}"] = scores["kl"].mean
            yield row


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--ways", nargs="*", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    parser.add_argument("--width", type=int, default=10)
    parser.add_argument("--proof", type=int, default=256)
    options = parser.parse_args(arguments)
    for model in options.models:
        for seed in options.seeds:
            yield from measure_model(model, seed, options.width, options.proof, options.ways)
