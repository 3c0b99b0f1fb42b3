"""What a budget limits: mean amounts, mean bits or bytes; what can be had, and what is left of it."""

import enum
import math
from collections.abc import Sequence
from dataclasses import dataclass

from compressor.contracts import Problem
from compressor.errors import ConfigError

from ..targets import DEFAULT_TARGET, check_order

ROUNDING = 1e-9
"""Sums of sizes may be off by this share of all weights."""
UNSPENT = 0.002
"""A smaller share of the budget that is left over is not worth a note."""


class Unit(enum.Enum):
    """What a budget is given in."""

    amount = "amount"
    bits = "bits"
    bytes = "bytes"


@dataclass(frozen=True)
class Limit:
    """The sum of sizes over components may be `total`: of `parameters` · (1 − amount), or of bits.

    `asked` is the budget as it was given; `fixed_bits` are those of files that no treatment changes.
    """

    total: float
    unit: Unit
    asked: float
    parameters: int
    fixed_bits: int = 0

    @property
    def in_bits(self) -> bool:
        return self.unit is not Unit.amount

    @property
    def target(self) -> float | None:
        return self.asked if self.unit is Unit.amount else None

    def allows(self, total: float) -> bool:
        """Do sizes of `total` fit? Bits are counted, amounts may be off by rounding."""
        return total <= self.total + (0.0 if self.in_bits else ROUNDING * self.parameters)

    def require(self, total: float, notes: Sequence[str] = ()) -> None:
        """Raise ConfigError where sizes of `total` are too much; it says that no less can be had, and `notes` why."""
        if self.allows(total):
            return
        wanted, nearest, fix = f"{self.asked:.12g} {self.unit.name}", "", f"raise `schedule.{self.unit.name}`"
        match self.unit:
            case Unit.amount:
                wanted, fix = f"a mean amount of {self.asked:g}", "lower `schedule.targets`"
                nearest = f"most is {-round_up(total / self.parameters - 1):g}"
            case Unit.bits:
                nearest = f"smallest is {round_up(total / self.parameters):g} bits"
            case Unit.bytes:
                nearest = f"smallest is {math.ceil((self.fixed_bits + total) / 8)} bytes"
        reasons = "".join(f" ({note})" for note in notes)
        raise ConfigError(
            f"the budget of {wanted} is out of reach, the {nearest}; {fix} or add a compressor that takes more{reasons}"
        )

    def describe_rest(self, total: float) -> str | None:
        """A note on what sizes of `total` leave of the budget; None where that is too little to speak of."""
        rest = 1 - total / self.total if self.total else 0.0
        if rest <= UNSPENT:
            return None
        return f"{rest:.1%} of the budget stay unspent: nothing that it could buy makes the plan better."


def round_up(value: float) -> float:
    """`value` to four decimals, not rounded down: what is named must be enough."""
    return math.ceil(value * 1e4 - ROUNDING) / 1e4


def read_limits(problem: Problem, targets: Sequence[float], bits: float | None, size: int | None) -> list[Limit]:
    """One limit a round, from `schedule.targets`, `.bits` or `.bytes`; raises ConfigError for what cannot be."""
    given = [name for name, value in (("targets", targets), ("bits", bits), ("bytes", size)) if value]
    if len(given) > 1:
        raise ConfigError(
            f"at most one of `schedule.targets`, `.bits` and `.bytes` may be given, got {' and '.join(given)}; "
            "drop the others"
        )
    parameters = sum(component.parameters for component in problem.components)
    if bits is not None:
        if not (math.isfinite(bits) and bits > 0):
            raise ConfigError(f"`schedule.bits` must be above 0, got {bits:g}; give the mean bits of a weight, say 4.5")
        return [Limit(math.floor(bits * parameters * (1 + 1e-12)), Unit.bits, bits, parameters)]
    if size is not None:
        return [limit_bytes(problem, size)]
    largest = {c.name: max(offers[c.name].largest for offers in problem.offers.values()) for c in problem.components}
    most = sum(c.parameters * largest[c.name] for c in problem.components)
    chosen = check_order(targets) or [min(DEFAULT_TARGET, most / parameters)]
    limits = [Limit(parameters * (1 - target), Unit.amount, target, parameters) for target in chosen]
    for limit in limits:
        limit.require(parameters - most)
    return limits


def limit_bytes(problem: Problem, size: int) -> Limit:
    """The limit of weight files of `size` bytes; raises ConfigError where no plan makes them smaller."""
    if not problem.packed:
        raise ConfigError(
            "`schedule.bytes` needs an export that packs weights, and of this model it packs none; set "
            "export.format=auto and install 'compressor[export]', or use schedule.bits or schedule.targets"
        )
    if size <= 0:
        raise ConfigError(f"`schedule.bytes` must be above 0, got {size}; give the size of the weight files")
    parameters, fixed = sum(c.parameters for c in problem.components), 8 * problem.fixed_bytes
    return Limit(size * 8 - fixed, Unit.bytes, size, parameters, fixed)
