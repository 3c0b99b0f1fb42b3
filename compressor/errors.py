"""The exceptions. Each message is one line: what is wrong, the value, the rule, the fix."""

import difflib
from collections.abc import Iterable


class CompressorError(Exception):
    """Root of all errors that a user can cause and correct; printed without a traceback."""


class ConfigError(CompressorError):
    """A setting, an option or a command-line argument is wrong."""


class ModelError(CompressorError):
    """A checkpoint cannot be loaded, or is not a decoder-only language model."""


class DataError(CompressorError):
    """A text or the prefixes made from it do not fit the request."""


class PlanError(CompressorError):
    """A plan names what does not exist, or asks for what a compressor does not offer."""


class PluginError(CompressorError):
    """A plugin broke its contract."""


class OutputError(CompressorError):
    """A result cannot be written, or an earlier result cannot be read."""


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown `name`: near misses first, else everything that is known."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"`{option}`" for option in near) + "?"
    return "known: " + (", ".join(options) if options else "none")
