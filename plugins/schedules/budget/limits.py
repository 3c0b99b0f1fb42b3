"""Limits of a budget: mean amount, mean bits or bytes; whether a plan fits, and how much is left over."""

import enum
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.contracts import Problem
from compressor.errors import ConfigError

from ..targets import DEFAULT_TARGET, check_bits, check_order

ROUNDING = 1e-9
"""Rounding error of sums of sizes, as a share of all weights."""
UNSPENT = 0.002
"""If less than this share of the budget is left over, there is no note."""
UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
"""Unit in lower case -> bytes."""
LARGEST = 2**63
"""Bytes; more than any model has."""
RULE = "give a percentage of the base's weight files, such as 50%, or a size such as 2.8MB (10^6 bytes) or 3MiB (2^20)"


class Unit(enum.Enum):
    """The unit of a budget."""

    amount = "amount"
    bits = "bits"
    bytes = "bytes"


@dataclass(frozen=True)
class Limit:
    """The sum of sizes over components may be at most `total`: of `parameters` · (1 − amount), or of bits.

    `asked` is the budget as a number, in bytes for files. `size` is the text of `schedule.size`, if it was given.
    `fixed_bits` is the part of the files that no treatment changes, `base_bytes` the size of the base's weight files.
    """

    total: float
    unit: Unit
    asked: float
    parameters: int
    fixed_bits: int = 0
    size: str | None = None
    base_bytes: int = 0

    @property
    def in_bits(self) -> bool:
        return self.unit is not Unit.amount

    @property
    def target(self) -> float | None:
        return self.asked if self.unit is Unit.amount else None

    @property
    def most_bytes(self) -> int | None:
        """The limit of the weight files; None if the budget is not in bytes."""
        return int(self.asked) if self.unit is Unit.bytes else None

    def allows(self, total: float) -> bool:
        """Whether sizes of `total` fit. Bits are exact, amounts may have rounding errors."""
        return total <= self.total + (0.0 if self.in_bits else ROUNDING * self.parameters)

    def require(self, total: float, notes: Sequence[str] = ()) -> None:
        """Raise ConfigError if `total`, the smallest possible size, does not fit; the message includes `notes`."""
        if self.allows(total):
            return
        wanted, nearest, fix = f"{self.asked:.12g} {self.unit.name}", "", f"raise `schedule.{self.unit.name}`"
        match self.unit:
            case Unit.amount:
                wanted, fix = f"a mean amount of {self.asked:g}", "lower `schedule.targets`"
                most = 0.0 - round_up(total / self.parameters - 1)
                nearest = f"the most is {most:g}" if most > 0 else "nothing can be taken"
            case Unit.bits:
                nearest = f"the smallest is {round_up(total / self.parameters):g} bits"
            case Unit.bytes:
                smallest = math.ceil((self.fixed_bits + total) / 8)
                nearest = f"the smallest is {smallest} bytes"
                if self.size is not None and self.base_bytes:
                    wanted, fix = f"`schedule.size={self.size}` ({self.asked:.12g} bytes)", "raise `schedule.size`"
                    nearest += f", {math.ceil(1000 * smallest / self.base_bytes) / 10:g}% of the base"
        reasons = "".join(f" ({note})" for note in notes)
        raise ConfigError(
            f"the budget of {wanted} is out of reach, {nearest}; {fix} or add a compressor that takes more{reasons}"
        )

    def describe_rest(self, total: float) -> str | None:
        """A note on the part of the budget that is left over; None if it is at most UNSPENT."""
        rest = 1 - total / self.total if self.total else 0.0
        if rest <= UNSPENT:
            return None
        return f"{rest:.1%} of the budget is left over: no option that fits into it improves the plan."


def round_up(value: float) -> float:
    """`value` rounded up to four decimals, so that the number in a message is enough."""
    return math.ceil(value * 1e4 - ROUNDING) / 1e4


def check_limits(targets: Sequence[float], bits: float | None, size_bytes: int | None, size: str | None) -> None:
    """Raise ConfigError for a limit that no model can have, or for more than one of them."""
    options = {"targets": list(targets) or None, "bits": bits, "bytes": size_bytes, "size": size}
    given = [name for name, value in options.items() if value is not None]
    if len(given) > 1:
        raise ConfigError(
            "at most one of `schedule.targets`, `.bits`, `.bytes` and `.size` may be given, got "
            f"{' and '.join(given)}; drop the others"
        )
    check_order(targets)
    if bits is not None:
        check_bits(bits)
    if size_bytes is not None and size_bytes <= 0:
        raise ConfigError(f"`schedule.bytes` must be above 0, got {size_bytes}; give the size of the weight files")
    if size is not None:
        read_size(size, LARGEST)


def read_limits(
    problem: Problem, targets: Sequence[float], bits: float | None, size_bytes: int | None, size: str | None
) -> list[Limit]:
    """One limit for each round, from `schedule.targets`, `.bits`, `.bytes` or `.size`, after `check_limits`.

    Raises ConfigError if it is out of reach.
    """
    parameters = sum(component.parameters for component in problem.components)
    if bits is not None:
        return [Limit(math.floor(bits * parameters * (1 + 1e-12)), Unit.bits, bits, parameters)]
    if size is not None or size_bytes is not None:
        return [limit_bytes(problem, size_bytes, size)]
    largest = {c.name: max(offers[c.name].largest for offers in problem.offers.values()) for c in problem.components}
    most = sum(c.parameters * largest[c.name] for c in problem.components)
    chosen = list(targets) or [min(DEFAULT_TARGET, most / parameters)]
    limits = [Limit(parameters * (1 - target), Unit.amount, target, parameters) for target in chosen]
    for limit in limits:
        limit.require(parameters - most)
    return limits


def limit_bytes(problem: Problem, size_bytes: int | None, size: str | None) -> Limit:
    """The limit of the weight files, from `schedule.bytes` or `.size`; raises ConfigError if it is not possible."""
    key = "schedule.bytes" if size is None else "schedule.size"
    if not problem.packed:
        raise ConfigError(
            f"`{key}` needs an export that packs weights, and it can pack no component of this model; set "
            "export.format=auto and install 'compressor[export]', or use schedule.bits or schedule.targets"
        )
    most = (size_bytes or 0) if size is None else read_size(size, problem.stored_bytes)
    parameters, fixed = sum(c.parameters for c in problem.components), 8 * problem.fixed_bytes
    return Limit(most * 8 - fixed, Unit.bytes, most, parameters, fixed, size, problem.stored_bytes)


def read_size(text: str, base_bytes: int) -> int:
    """The `schedule.size` `50%`, `2.8MB` or `3MiB` in whole bytes, rounded down; raises ConfigError for anything else.

    Percentages are of `base_bytes`, the size of the base's weight files.
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+|[0-9]+\.)\s*(%|[a-z]+)\s*", text, re.IGNORECASE)
    unit = match[2].lower() if match else ""
    if match is None or (unit != "%" and unit not in UNITS):
        raise ConfigError(
            f"`schedule.size` must be a percentage or a number of bytes with a unit, got {text!r}; {RULE}"
        )
    number = float(match[1])
    if unit == "%" and not 0 < number <= 100:
        raise ConfigError(f"`schedule.size` must be above 0% and at most 100%, got {text!r}; for example 50%")
    size = number * base_bytes / 100 if unit == "%" else number * UNITS[unit]
    if not 1 <= size < math.inf:
        raise ConfigError(f"`schedule.size` must be at least one byte, got {text!r}; {RULE}")
    return math.floor(size)
