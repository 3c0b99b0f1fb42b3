"""Parameters of tests that run where slow tests run, beside those that always do."""

from collections.abc import Iterable
from typing import Any

import pytest


def rarely(values: Iterable[Any]) -> list[Any]:
    """The values as parameters with the mark `slow`."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def rarely_cases(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Cases of several parameters each, with the mark `slow`."""
    return [pytest.param(*case, marks=pytest.mark.slow) for case in cases]
