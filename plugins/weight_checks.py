"""Checks of the numbers of a weight, with one message for all compressors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compressor.contracts import Component
from compressor.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor


def check_finite(values: Tensor, component: Component) -> None:
    """Raises ModelError if `values`, weights or the largest |w| of each group, contain NaN or infinity."""
    if not values.isfinite().all():
        raise ModelError(
            f"weight of `{component.name}` contains NaN or infinity; all weights must be finite, repair the checkpoint"
        )


def check_ranked(importance: Tensor, component: Component) -> Tensor:
    """The `importance` of weights; raises ModelError for NaN, which has no rank."""
    if importance.isnan().any():
        raise ModelError(
            f"weight of `{component.name}` contains NaN; every weight must be a number, repair the checkpoint"
        )
    return importance
