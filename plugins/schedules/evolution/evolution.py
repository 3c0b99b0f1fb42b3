"""Evolutionary search over allocations: move amounts between components, keep the allocation that scores best."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from compressor.contracts import (
    Asks,
    Compressor,
    KeepRequest,
    Metric,
    Problem,
    Schedule,
    ScoreRequest,
    Search,
    SizeRequest,
)
from compressor.errors import ConfigError

from ..targets import Span, check_any, check_bits, check_metric, check_order, check_shrinks, choose_span
from .fixed_levels import list_levels, make_ladder, make_levels, span_options
from .mutations import Space, State, make_steps
from .presets import Effort, Preset, choose_effort


@dataclass
class Evolution(Schedule):
    """EvoPress, a (1 + λ) evolution strategy over allocations of one size; one round per cumulative target.

    parent ← uniform;  in each generation:
        offspring_1 … offspring_λ ← parent after min(u, v) random switches each, u and v drawn from 1, 2, 3
        stage i keeps the best `survivors_i` of them by the `objective` on ceil(tokens_i / M) prefixes, M tokens each
        the parent joins the last stage, whose one survivor is the next parent

    A switch lowers the amount of one component and raises that of another. With a range of amounts, both change by the
    same number of weights (`Steps`), so the mean amount is constant. With fixed levels, of one or several compressors,
    they move by one level within the packed bits of the uniform allocation (`FixedLevels`), or within `bits` per weight
    (scales counted) if `bits` is given in place of `targets`. The default target is 0.5 for a range, and the middle of
    the reachable amounts for fixed levels.

    The preset `small` has 80 generations of 16 offspring, survivors 3, 1, 1 on 256, 1024, 4096 tokens, which costs as
    much as 220 trials on 64 prefixes of 64 tokens. The preset `published` is the authors'. For pruning: 400 generations
    of 64, survivors 8, 2, 1 on 2048, 16384, 65536 tokens; for quantization: 150 of 128, 16, 4, 1 on 2048, 16384,
    131072. Options that are given replace those of the preset. Unlike in EvoPress, a stage uses the same prefixes in
    every generation, so no plan is scored twice on them.

    Sieberling et al., "EvoPress: Towards Optimal Dynamic Model Compression via Evolutionary Search", ICML 2025
    (arXiv 2410.14649); numbers from the authors' scripts, github.com/IST-DASLab/EvoPress.
    """

    name: ClassVar[str] = "evolution"

    targets: list[float] = field(default_factory=list)
    bits: float | None = None
    objective: str = "kl"
    preset: Preset = Preset.small
    generations: int | None = None
    offspring: int | None = None
    survivors: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    step: float | None = None

    def ranks_by(self) -> tuple[str, ...]:
        return (self.objective,)

    def check_options(self, compressors: Mapping[str, Compressor], metrics: Mapping[str, type[Metric]]) -> None:
        check_any(compressors, self.name)
        check_order(self.targets)
        self._check_bits()
        self._choose_effort(quantizes=True)
        if self.bits is not None:
            check_shrinks(compressors, f"schedule.bits={self.bits:g}", files=False)

    def list_unused(self, problem: Problem) -> Mapping[str, str]:
        return {"step": "fixed levels"} if list_levels(problem) else {}

    def search(self, problem: Problem) -> Search:
        options = list_levels(problem)
        span = span_options(problem, options) if options else choose_span(problem, self.name)
        targets = self._check_targets(span, fixed=bool(options))
        effort = self._choose_effort(quantizes=bool(options))
        check_metric(problem, self.objective, "objective")
        ladder = make_ladder(options, (yield from SizeRequest(options))) if options else None
        rng, current = np.random.default_rng(problem.seed), np.zeros(len(span.names))
        for target in targets:
            space: Space
            if ladder is None:
                space = make_steps(span, current, target or 0.0, effort.step)
            else:
                space = make_levels(ladder, span, current, target, self.bits)
            best = yield from self._evolve(problem, space, effort, rng)
            current = span.read((yield from KeepRequest(space.plan(best), target, last=target == targets[-1])))

    def _choose_effort(self, quantizes: bool) -> Effort:
        given = {name: getattr(self, name) for name in ("generations", "offspring", "survivors", "tokens", "step")}
        return choose_effort(self.preset, quantizes, **given)

    def _check_bits(self) -> None:
        """Raise ConfigError for `bits` that no model can have, or beside targets."""
        if self.bits is not None:
            check_bits(self.bits)
            if self.targets:
                raise ConfigError(
                    f"`schedule.bits` excludes `schedule.targets`, got {self.targets} too; drop one of them"
                )

    def _check_targets(self, span: Span, fixed: bool) -> list[float | None]:
        """The target of each round; None stands for a round with `bits`."""
        if self.bits is None:
            middle = [(span.mean(span.low) + span.mean(span.high)) / 2] if fixed else []
            return [*span.check_targets(self.targets or middle)]
        if not fixed:
            raise ConfigError(
                f"`schedule.bits` needs fixed levels, {span.compressor} offers a range; give `schedule.targets` instead"
            )
        self._check_bits()
        return [None]

    def _evolve(self, problem: Problem, space: Space, effort: Effort, rng: np.random.Generator) -> Asks[State]:
        """The last parent. Scores are on top of the current model, and no plan is scored twice on the same prefixes."""
        sign, known = problem.better[self.objective].sign, dict[tuple[State, int], float]()
        parent, stages = space.uniform(rng), effort.stages(problem)
        for _ in range(effort.generations):
            rivals = space.breed(parent, effort.offspring, rng)
            if not rivals:
                break
            for stage, (survivors, stop) in enumerate(stages, start=1):
                if stage == len(stages):
                    rivals.append(parent)
                elif len(rivals) <= survivors:
                    continue
                if new := [state for state in rivals if (state, stop) not in known]:
                    answer = yield from ScoreRequest([*map(space.plan, new)], (self.objective,), stop=stop)
                    values = [sign * scores[self.objective].mean for scores in answer]
                    known |= {(s, stop): -math.inf if math.isnan(v) else v for s, v in zip(new, values, strict=True)}
                rivals = sorted(rivals, key=lambda state: known[state, stop], reverse=True)[:survivors]
            parent = rivals[0]
        return parent
