"""The hooks that a plugin can implement. Put `hookimpl` on a module-level function with one of these names."""

from collections.abc import Callable

import pluggy

from compressor.contracts import Compressor, Metric, Recovery, Schedule

hookspec = pluggy.HookspecMarker("compressor")
hookimpl = pluggy.HookimplMarker("compressor")


@hookspec
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    """Call `register` with each metric class."""


@hookspec
def register_compressors(register: Callable[[type[Compressor]], None]) -> None:
    """Call `register` with each compressor class."""


@hookspec
def register_schedules(register: Callable[[type[Schedule]], None]) -> None:
    """Call `register` with each schedule class."""


@hookspec
def register_recoveries(register: Callable[[type[Recovery]], None]) -> None:
    """Call `register` with each recovery class."""
