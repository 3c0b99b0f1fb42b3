"""The baseline that every search has to beat: the same amount for every component."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from compressor.contracts import KeepRequest, Offer, Problem, Schedule, Search, Treatment
from compressor.errors import ConfigError

from .targets import DEFAULT_TARGET, check_order, choose_offers


@dataclass
class Uniform(Schedule):
    """One round per target, nothing scored: amount_c = target for every component c.

    Without targets a range is taken by half, and fixed levels by the largest that all components share.
    """

    name: ClassVar[str] = "uniform"

    targets: list[float] = field(default_factory=list)

    def search(self, problem: Problem) -> Search:
        compressor, offers = choose_offers(problem, self.name)
        targets = check_order(self.targets) or check_order([find_common_amount(compressor, offers)])
        for target in targets:
            check_offered(target, compressor, offers)
        for target in targets:
            plan = {component.name: Treatment(compressor, target) for component in problem.components}
            yield from KeepRequest(plan, target, last=target == targets[-1])


def find_common_amount(compressor: str, offers: Mapping[str, Offer]) -> float:
    """The amount to take without targets; raises ConfigError if fixed levels have none in common."""
    levels = {level for offer in offers.values() for level in offer.levels}
    if not levels:
        lowest, highest = max(offer.low for offer in offers.values()), min(offer.high for offer in offers.values())
        middle: float = max(lowest, min(DEFAULT_TARGET, highest))
        return middle
    common = [level for level in levels if all(offer.contains(level) for offer in offers.values())]
    if not common:
        raise ConfigError(
            f"{compressor} offers no amount that all components share ({', '.join(f'{x:g}' for x in sorted(levels))}); "
            "narrow `components.include` to components stored alike"
        )
    return max(common)


def check_offered(target: float, compressor: str, offers: Mapping[str, Offer]) -> None:
    """Does every component offer the target? Raises ConfigError that names one that does not."""
    for name, offer in offers.items():
        if not offer.contains(target):
            raise ConfigError(
                f"`schedule.targets` asks for {target:g}, {compressor} offers {offer}; "
                f"choose what every component offers, `{name}` too"
            )
