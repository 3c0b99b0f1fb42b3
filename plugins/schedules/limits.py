"""What a budget limits: mean amounts, mean bits or bytes; and what an option takes of it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.contracts import Problem
from compressor.errors import ConfigError

from .targets import DEFAULT_TARGET, check_order


@dataclass(frozen=True)
class Limit:
    """The sum of sizes over components may be `total`.

    A size is `parameters · (1 − amount)`, or the packed bits where `in_bits`. `target` is the mean amount, if given.
    """

    total: float
    in_bits: bool
    text: str
    target: float | None = None


def read_limits(problem: Problem, targets: Sequence[float], bits: float | None, size: int | None) -> list[Limit]:
    """One limit a round, from `schedule.targets`, `.bits` or `.bytes`; raises ConfigError unless it is one of them."""
    given = [name for name, value in (("targets", targets), ("bits", bits), ("bytes", size)) if value]
    if len(given) > 1:
        raise ConfigError(
            f"one of `schedule.targets`, `.bits` and `.bytes` must be given, got {' and '.join(given)}; drop the others"
        )
    parameters = sum(component.parameters for component in problem.components)
    if bits is not None:
        if not (math.isfinite(bits) and bits > 0):
            raise ConfigError(f"`schedule.bits` must be above 0, got {bits:g}; give the mean bits of a weight, say 4.5")
        return [Limit(bits * parameters, in_bits=True, text=f"{bits:g} bits")]
    if size is not None:
        if not problem.packed:
            raise ConfigError(
                f"`schedule.bytes` needs an export of packed weights, this one takes {problem.stored_bytes} bytes with "
                "any plan; use schedule.bits or schedule.targets"
            )
        treated = sum(component.parameters * component.stored_bits for component in problem.components)
        rest = problem.stored_bytes * 8 - treated
        if size * 8 <= rest:
            raise ConfigError(
                f"`schedule.bytes` must be above the {rest // 8} bytes that no treatment changes, got {size}; raise it"
            )
        return [Limit(size * 8 - rest, in_bits=True, text=f"{size} bytes")]
    chosen = check_order(targets) or [DEFAULT_TARGET]
    return [Limit(parameters * (1 - t), in_bits=False, text=f"a mean amount of {t:g}", target=t) for t in chosen]


def refuse_limit(limit: Limit, smallest: float, problem: Problem, *notes: str) -> ConfigError:
    """The error for a limit below the smallest sum of sizes; it says what can be had, and `notes` why no more."""
    parameters = sum(component.parameters for component in problem.components)
    if not limit.in_bits:
        return ConfigError(
            f"the budget of {limit.text} is out of reach, the most is {1 - smallest / parameters:.4g}; "
            "lower `schedule.targets` or add a compressor that takes more" + "".join(f" ({note})" for note in notes)
        )
    nearest = f"{smallest / parameters:.4g} bits"
    if "bytes" in limit.text:
        treated = sum(component.parameters * component.stored_bits for component in problem.components)
        nearest = f"{math.ceil((problem.stored_bytes * 8 - treated + smallest) / 8)} bytes"
    return ConfigError(
        f"the budget of {limit.text} is out of reach, the smallest is {nearest}; raise it or add a compressor that "
        "takes more" + "".join(f" ({note})" for note in notes)
    )
