"""Options that several quantizers share: the widths of integers, and how many weights share a scale."""

from __future__ import annotations

from compressor.contracts import Component, Offer
from compressor.errors import ConfigError


def offer_bits(compressor: str, widths: list[int], component: Component) -> Offer:
    """Offers 1 − b / stored bits for all `widths` b below the stored bits; raises ConfigError if there are none."""
    levels = tuple(1 - bits / component.stored_bits for bits in widths if bits < component.stored_bits)
    if not levels:
        raise ConfigError(
            f"`{compressor}` offers nothing for `{component.name}`: {min(widths)} bits must be fewer than the"
            f" {component.stored_bits} stored; choose fewer bits, or exclude it by components.exclude"
        )
    return Offer(levels=levels)


def choose_bits(compressor: str, offer: Offer, amount: float, component: Component) -> int:
    """The width for `amount`; raises PlanError if the amount is not in `offer`."""
    offer.require(amount, compressor, component)
    return round((1 - amount) * component.stored_bits)


def check_widths(compressor: str, widths: list[int]) -> None:
    """Raises ConfigError unless `widths` are one or more different numbers from 2 to 8."""
    if not widths or len(set(widths)) < len(widths) or not set(widths) <= set(range(2, 9)):
        raise ConfigError(
            f"`compressor.{compressor}.bits` must be different widths from 2 to 8, got {widths};"
            " give for example [3,4,8]"
        )


def check_group(compressor: str, group: int, least: int) -> None:
    """Raises ConfigError for a `group` below `least`."""
    if group < least:
        raise ConfigError(f"`compressor.{compressor}.group` must be at least {least}, got {group}; give for example 32")


def check_option(compressor: str, option: str, value: float, fits: bool, rule: str, example: str) -> None:
    """Raises ConfigError unless the value of the option `fits` the rule."""
    if not fits:
        name = f"compressor.{compressor}.{option}"
        raise ConfigError(f"`{name}` must be {rule}, got {value}; give for example {example}")
