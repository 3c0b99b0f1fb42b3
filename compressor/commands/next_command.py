"""Where a forecast leads: the command that makes a point of its curves, ready to be pasted."""

import math
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from compressor.artifacts.forecast_record import ForecastRecord, PointForecast
from compressor.commands.overrides import write_value
from compressor.commands.plain_settings import to_plain
from compressor.plugins import Plugins
from compressor.settings import (
    ComponentSettings,
    DataSettings,
    ExportSettings,
    ModelSettings,
    SweepSettings,
    TrackingSettings,
)

SECTIONS: Mapping[str, type] = {
    "model": ModelSettings,
    "data": DataSettings,
    "components": ComponentSettings,
    "sweep": SweepSettings,
    "tracking": TrackingSettings,
    "export": ExportSettings,
}
"""Parts of a configuration that a run takes over from a forecast."""
GROUPS = {"data.source": "data", "tracking.backend": "tracking"}
"""Key -> the group that is chosen to set it."""
NOT_TAKEN = {"tracking.backend"}
"""A forecast never logs, which says nothing about the run."""
PLACES = 4
"""Decimals of an amount."""


def add_commands(record: ForecastRecord, folder: Path, plugins: Plugins) -> None:
    """Give every point of the curves its command.

    A point of all compressors together is a plan, which is done as it is. A point of one compressor alone is a target
    for the schedule, which then also corrects its plan by trials.
    """
    shared = ["compressor", "run", *list_shared(record.config)]
    path = write_value("schedule.path", find_short_path(folder / "forecast.json"))
    for point in record.curve:
        if point.amount > 0 and point.plan is not None:
            chosen = f"schedule.amount={round(point.amount, PLACES):g}"
            point.command = shlex.join([*shared, "schedule=plan", f"schedule.path={path}", chosen])
    for name, points in record.curves.items():
        options = [*shared, f"compressor={name}", *list_options(record.config, name, plugins)]
        for point in points:
            target = math.floor(point.amount * 10**PLACES + 1e-6) / 10**PLACES
            if point.command is None and target > 0:
                schedule = [*choose_schedule(record.config), f"schedule.targets=[{target:g}]"]
                point.command = shlex.join([*options, *schedule])


def list_shared(config: Mapping[str, Any]) -> Iterator[str]:
    """Overrides for what differs from the defaults: which model, texts and components, what form of result."""
    if isinstance(config.get("model"), Mapping) and config["model"].get("path"):
        yield "model=hf"
    for section, cls in SECTIONS.items():
        found, default = config.get(section), to_plain(cls())
        for name, value in found.items() if isinstance(found, Mapping) else ():
            key = f"{section}.{name}"
            if value != default.get(name) and key not in NOT_TAKEN:
                yield f"{GROUPS.get(key, key)}={write_value(key, value)}"
    if config.get("seed"):
        yield f"seed={config['seed']}"


def list_options(config: Mapping[str, Any], name: str, plugins: Plugins) -> Iterator[str]:
    """Overrides for options of a compressor that are not as they are by default."""
    configured = config.get("compressor")
    found = configured.get(name) if isinstance(configured, Mapping) else None
    default = to_plain(plugins.compressors[name]()) if name in plugins.compressors else {}
    for option, value in found.items() if isinstance(found, Mapping) else ():
        if value != default.get(option):
            yield f"compressor.{name}.{option}={write_value(option, value)}"


def choose_schedule(config: Mapping[str, Any]) -> list[str]:
    """The schedule of the forecast where it is not that of a run."""
    schedule = config.get("schedule")
    name = schedule.get("name", "budget") if isinstance(schedule, Mapping) else "budget"
    return [] if name == "budget" else [f"schedule={name}"]


def find_short_path(path: Path) -> str:
    """Relative to the working directory where it lies below that."""
    whole, here = path.absolute(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def choose_point(record: ForecastRecord) -> PointForecast | None:
    """A point to begin with: the smallest size for which half of the text is expected to agree, as far as known."""
    half = record.base["expected_fdtm"] / 2
    trusted = [point for point in record.curve if point.command and point.trusted]
    good = [point for point in trusted if point.expected_fdtm >= half]
    return max(good, key=lambda point: point.amount) if good else min(trusted, key=lambda p: p.amount, default=None)
