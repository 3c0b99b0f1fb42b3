"""The check of an option that compressors of several folders share."""

from compressor.contracts import Compressor
from compressor.errors import ConfigError


def check_option(compressor: Compressor, option: str, fits: bool, rule: str, example: str) -> None:
    """Raises ConfigError unless the value of the option `fits` the rule."""
    if not fits:
        name, value = f"compressor.{compressor.name}.{option}", getattr(compressor, option)
        raise ConfigError(f"`{name}` must be {rule}, got {value}; give for example {example}")
