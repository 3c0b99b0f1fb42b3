"""Numbers for people: nothing is ever written as -0."""

import re

import pytest

from compressor.artifacts.files import to_strict
from compressor.contracts import Offer
from compressor.report.formatting import (
    format_bits,
    format_bytes,
    format_estimate,
    format_interval,
    format_number,
    format_percent,
    format_seconds,
    format_sizes,
)

NEARLY = (-0.0, -1e-12, -4e-4, -0.004, -0.04)
"""Negative, and zero once they are rounded to few places."""


@pytest.mark.parametrize("value", NEARLY)
def test_what_rounds_to_zero_has_no_sign(value: float) -> None:
    said = [
        *(format_number(value, decimals) for decimals in (None, 0, 1, 2)),
        *(format_percent(value, fixed) for fixed in (False, True)),
        *(format_bytes(value), format_seconds(value), format_bits(value, value), format_sizes(1.0, 1 + value)),
        *(format_interval(value, 9.0), format_estimate(value, -9.0, 9.0), str(Offer(low=value, high=0.5))),
    ]
    assert not [text for text in said if re.search(r"[-−]0(\.0*)?(?![.\d]|e)", text)], said


def test_records_hold_no_negative_zero() -> None:
    assert str(to_strict([-0.0, {"a": -0.0}])) == "[0.0, {'a': 0.0}]"
