"""The widths of integers, an option that several quantizers share."""

from compressor.contracts import Component, Compressor, Offer
from compressor.errors import ConfigError

from ..options import check_option


def check_widths(compressor: Compressor, widths: list[int]) -> None:
    fits = bool(widths) and len(set(widths)) == len(widths) and set(widths) <= set(range(2, 9))
    check_option(compressor, "bits", fits, "different widths from 2 to 8", "[3,4,8]")


def offer_bits(compressor: Compressor, widths: list[int], component: Component) -> Offer:
    """Offers 1 − b / stored bits for all `widths` b below the stored bits; raises ConfigError if there are none."""
    levels = tuple(1 - bits / component.stored_bits for bits in widths if bits < component.stored_bits)
    if not levels:
        raise ConfigError(
            f"`{compressor.name}` offers nothing for `{component.name}`: {min(widths)} bits must be fewer than the"
            f" {component.stored_bits} stored; choose fewer bits, or exclude it by components.exclude"
        )
    return Offer(levels=levels)


def choose_bits(compressor: Compressor, amount: float, component: Component) -> int:
    """The width for `amount`; raises PlanError if the amount is not offered."""
    compressor.offer(component).require(amount, compressor.name, component)
    return round((1 - amount) * component.stored_bits)
