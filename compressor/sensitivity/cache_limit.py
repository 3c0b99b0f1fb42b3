"""How large the cache of estimates may become. Nothing here needs torch."""

import os

from compressor.errors import ConfigError

LIMIT = 1 << 30
"""The largest size of the cache in bytes; the least recently read files are removed first."""
VARIABLE = "COMPRESSOR_CACHE_BYTES"
"""The environment variable that sets another limit; 0 switches the cache off."""
MOST_DIGITS = 18


def read_limit() -> int:
    """The limit of the cache in bytes; raises ConfigError if the environment variable is not a number."""
    given = os.environ.get(VARIABLE, str(LIMIT))
    if not given.isdecimal() or len(given) > MOST_DIGITS:
        raise ConfigError(f"`{VARIABLE}` must be a number of bytes, got {given!r:.80}; 0 keeps no estimates")
    return int(given)
