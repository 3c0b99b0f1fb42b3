"""The cost of an evolution: generations, offspring and stages of selection."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from compressor.contracts import Problem
from compressor.errors import ConfigError


class Preset(enum.Enum):
    """`small` is made for 64 prefixes of 64 tokens; `published` has the numbers of the EvoPress authors."""

    small = "small"
    published = "published"


@dataclass(frozen=True)
class Effort:
    """`survivors` and `tokens` have one number for each stage of selection; `step` is the share of `make_steps`."""

    generations: int
    offspring: int
    survivors: Sequence[int]
    tokens: Sequence[int]
    step: float

    def stages(self, problem: Problem) -> list[tuple[int, int]]:
        """(survivors, prefixes) of each stage: ceil(tokens / tokens of a continuation) prefixes, or all there are."""
        wanted = [min(math.ceil(tokens / problem.tokens), problem.prefixes) for tokens in self.tokens]
        return list(zip(self.survivors, wanted, strict=True))


SMALL = Effort(generations=80, offspring=16, survivors=(3, 1, 1), tokens=(256, 1024, 4096), step=1 / 2)
PRUNING = Effort(generations=400, offspring=64, survivors=(8, 2, 1), tokens=(2048, 16384, 65536), step=1 / 16)
QUANTIZATION = replace(PRUNING, generations=150, offspring=128, survivors=(16, 4, 1), tokens=(2048, 16384, 131072))

MOST_OFFSPRING = 10_000


def choose_effort(preset: Preset, quantizes: bool, **given: Any) -> Effort:  # noqa: ANN401 - fields of Effort
    """The preset, with the fields replaced that are given (not None or empty); raises ConfigError."""
    published = QUANTIZATION if quantizes else PRUNING
    effort = published if preset is Preset.published else SMALL
    effort = replace(effort, **{name: value for name, value in given.items() if value is not None and value != []})
    survivors, tokens = list(effort.survivors), list(effort.tokens)
    for name, value in (("generations", effort.generations), ("offspring", effort.offspring)):
        if value < 1:
            raise ConfigError(f"`schedule.{name}` must be at least 1, got {value}; leave it out for the preset's")
    if effort.offspring > MOST_OFFSPRING:
        raise ConfigError(
            f"`schedule.offspring` must be at most {MOST_OFFSPRING:,}, because all of a generation are drawn before "
            f"any is scored, got {effort.offspring:,}; give more generations in their place"
        )
    if not 0.0 < effort.step <= 1.0:
        raise ConfigError(f"`schedule.step` must be in (0, 1], got {effort.step:g}; leave it out for the preset's")
    if len(survivors) != len(tokens):
        raise ConfigError(
            f"`schedule.survivors` and `schedule.tokens` need a number for each stage, got {survivors} and {tokens}; "
            "give two lists of the same length"
        )
    if survivors[-1] != 1:
        raise ConfigError(f"`schedule.survivors` must end in 1, the next parent, got {survivors}; add a stage for it")
    if any(after > before for before, after in pairwise(survivors)):
        raise ConfigError(
            f"`schedule.survivors` must not increase, got {survivors}; give {sorted(survivors, reverse=True)}"
        )
    if tokens[0] < 1 or any(after < before for before, after in pairwise(tokens)):
        raise ConfigError(f"`schedule.tokens` must be positive and not decrease, got {tokens}; sort them")
    return effort
