"""The names of export formats, and whether the packages that write them are installed. Nothing here needs torch."""

import importlib.metadata
import importlib.util
import re
from contextlib import suppress

from compressor.errors import ConfigError, suggest

AUTO, DENSE, COMPRESSED_TENSORS = "auto", "dense", "compressed-tensors"
"""`dense` saves all weights in floating point, zeros and rounded values too; `auto` packs what it can."""
FORMATS = (AUTO, DENSE, COMPRESSED_TENSORS)
OLDEST = (0, 20)
"""The oldest supported version of the package compressed-tensors."""
GGUF_PACKAGES = ("gguf", "accelerate")
"""The package that writes GGUF, and the one that transformers also needs to read it."""


def is_installed() -> bool:
    """Whether a supported version of the package compressed-tensors is installed."""
    with suppress(importlib.metadata.PackageNotFoundError):
        version = importlib.metadata.version(COMPRESSED_TENSORS)
        return tuple(int(number) for number in re.findall(r"\d+", version)[:2]) >= OLDEST
    return False


def check_format(name: str, gguf: bool = False, cut: bool = False) -> None:
    """Raises ConfigError for an unknown format, one that cannot be `cut`, or whose package is missing or too old."""
    if name not in FORMATS:
        raise ConfigError(f"unknown `export.format` `{name}`; {suggest(name, FORMATS)}")
    if name == COMPRESSED_TENSORS and not is_installed():
        raise ConfigError(
            f"`export.format={COMPRESSED_TENSORS}` needs the package {COMPRESSED_TENSORS} "
            f"{'.'.join(map(str, OLDEST))} or later: pip install 'compressor[export]'"
        )
    if cut and (gguf or name == COMPRESSED_TENSORS):
        other = "export.gguf=true" if gguf else f"export.format={name}"
        raise ConfigError(
            f"`export.cut=true` cuts dense weights, and `{other}` writes others; leave one of the two out"
        )
    if gguf and (missing := [name for name in GGUF_PACKAGES if importlib.util.find_spec(name) is None]):
        raise ConfigError(f"`export.gguf=true` needs the package {missing[0]}: pip install 'compressor[gguf]'")


def check_packs(name: str, limit: str) -> None:
    """Raises ConfigError if files have a `limit`, such as `schedule.size`, and the format cannot pack weights."""
    if name == DENSE:
        raise ConfigError(
            f"`{limit}` limits the weight files, and `export.format={DENSE}` saves every weight dense; set "
            "export.format=auto, or use schedule.bits or schedule.targets"
        )
    if not is_installed():
        raise ConfigError(
            f"`{limit}` limits the weight files, which only packed weights make smaller; install "
            "'compressor[export]', or use schedule.bits or schedule.targets"
        )
