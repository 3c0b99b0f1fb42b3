"""The options of a compressor: the fields of its class, and their values from a plan file."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from compressor.contracts import Compressor


def option_names(cls: type[Compressor]) -> list[str]:
    """The fields of a compressor's class; the registry has checked that it is a dataclass."""
    assert dataclasses.is_dataclass(cls)
    return [field.name for field in dataclasses.fields(cls)]


def build_options(cls: type[Compressor], options: Mapping[str, Any]) -> dict[str, Any]:
    """Plain values of a plan file as a dataclass's field types, enums by name."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        merged = OmegaConf.merge(OmegaConf.structured(cls), dict(options))
        built = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from None
    return {name: getattr(built, name) for name in option_names(cls)}
