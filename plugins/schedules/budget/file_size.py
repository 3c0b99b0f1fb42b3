"""`schedule.size`: the largest size of the weight files, as a percentage of the base's or in bytes with a unit."""

import math
import re

from compressor.errors import ConfigError

UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}
"""Unit in lower case -> bytes."""
RULE = "give a percentage of the base's weight files, such as 50%, or a size such as 2.8MB (10^6 bytes) or 3MiB (2^20)"


def read_size(text: str, base_bytes: int) -> int:
    """`50%`, `2.8MB` or `3MiB` in whole bytes, rounded down; raises ConfigError for anything else.

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
