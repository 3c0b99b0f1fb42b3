"""Parameters of tests that run where slow tests run, beside those that always do."""

from collections.abc import Iterable
from typing import Any

import pytest


def rarely(values: Iterable[Any]) -> list[Any]:
    """The values as parameters with the mark `slow`."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
