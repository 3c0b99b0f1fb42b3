"""Settings of forecasts that take a second, and a forecast by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from compressor.commands.forecast import execute
from compressor.contracts import Compressor, Schedule
from compressor.plugins import installed
from compressor.settings import DataSettings, Settings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.budget.budget import Budget

DATA = DataSettings(prefixes=12, prefix_tokens=8, continuation_tokens=16)


def make_settings(*compressors: Compressor, schedule: Schedule | None = None, **changes: Any) -> Settings:  # noqa: ANN401
    settings = Settings(
        metric={},
        compressor={c.name: c for c in compressors or (Magnitude(), Int8(), Int4())},
        schedule=schedule or Budget(corrections=0, objective="margin_noise"),
        data=DATA,
    )
    return replace(settings, **changes)


def run(folder: Path, settings: Settings) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    execute(settings, installed(), folder, {"seed": settings.seed}, "compressor forecast")
    found: dict[str, Any] = json.loads((folder / "forecast.json").read_text(encoding="utf-8"))
    return found
