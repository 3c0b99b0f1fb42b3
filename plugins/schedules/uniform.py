"""The same amount for every component: a baseline that every search should beat."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from compressor.contracts import Compressor, KeepRequest, Metric, Offer, Problem, Schedule, Search, Treatment
from compressor.errors import ConfigError

from .targets import DEFAULT_TARGET, check_order, check_single, choose_offers


@dataclass
class Uniform(Schedule):
    """amount_c = target for every component c, one round per target; no trials are scored.

    The default target is 0.5 for a range, and the largest level that all components share for fixed levels.
    """

    name: ClassVar[str] = "uniform"

    targets: list[float] = field(default_factory=list)

    def check_options(self, compressors: Mapping[str, Compressor], metrics: Mapping[str, type[Metric]]) -> None:
        check_single(compressors, self.name)
        check_order(self.targets)

    def search(self, problem: Problem) -> Search:
        compressor, offers = choose_offers(problem, self.name)
        targets = check_order(self.targets) or check_order([find_common_amount(compressor, offers)])
        for target in targets:
            for name, offer in offers.items():
                if not offer.contains(target):
                    raise ConfigError(
                        f"`schedule.targets` has {target:g}, {compressor} offers {offer} for `{name}`; "
                        "choose an amount that it offers for every component"
                    )
        for target in targets:
            plan = {component.name: Treatment(compressor, target) for component in problem.components}
            yield from KeepRequest(plan, target, last=target == targets[-1])


def find_common_amount(compressor: str, offers: Mapping[str, Offer]) -> float:
    """The default target; raises ConfigError if the components have no fixed level in common."""
    levels = {level for offer in offers.values() for level in offer.levels}
    if not levels:
        lowest, highest = max(offer.low for offer in offers.values()), min(offer.high for offer in offers.values())
        middle: float = max(lowest, min(DEFAULT_TARGET, highest))
        return middle
    common = [level for level in levels if all(offer.contains(level) for offer in offers.values())]
    if not common:
        raise ConfigError(
            f"{compressor} offers no amount that all components share ({', '.join(f'{x:g}' for x in sorted(levels))}); "
            "narrow `components.include` to components of one stored dtype"
        )
    return max(common)
