"""The exception tree. The message of every `CompressorError` is one line: what, the value, the rule, the fix."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class CompressorError(Exception):
    """Root of all errors that a user can cause and fix; printed without a traceback."""

    def __str__(self) -> str:
        """One line that any terminal takes: a value in it may have several lines, or no encoding."""
        return " ".join(super().__str__().splitlines()).encode(errors="backslashreplace").decode()


class Interrupted(KeyboardInterrupt):
    """A signal came. Code that raises KeyboardInterrupt by itself does not raise this."""


class ConfigError(CompressorError):
    """A setting, an option or a command-line argument is wrong."""


class CannotFit(ConfigError):
    """There is no memory, or no room on a disk, for what the settings ask for. Nothing was done yet."""


class ModelError(CompressorError):
    """A checkpoint cannot be loaded, or is not a decoder-only language model."""


class DataError(CompressorError):
    """A text, or the prefixes made from it, cannot be used."""


class PlanError(CompressorError):
    """A plan names a component or compressor that does not exist, or an amount that is not offered."""


class PluginError(CompressorError):
    """A plugin does not keep its contract."""


class OutputError(CompressorError):
    """A result cannot be written, or an earlier result cannot be read."""


def list_causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, the one that led to it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


@contextmanager
def naming(key: str | None) -> Iterator[None]:
    """Inside, the message of a DataError begins with the `key`, if there is one, that leads to the text."""
    try:
        yield
    except DataError as error:
        if key is None:
            raise
        raise DataError(f"`{key}`: {error}") from None


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown `name`: near misses if there are any, else all known names."""
    options = sorted(known)
    near = difflib.get_close_matches(name, options, n=3, cutoff=0.6)
    if near:
        return "did you mean " + " or ".join(f"`{option}`" for option in near) + "?"
    return "known: " + (", ".join(options) if options else "none")
