"""Settings of runs that take a second, and a run by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from compressor.artifacts.run_record import Record
from compressor.commands.run import execute
from compressor.contracts import Compressor, Schedule
from compressor.plugins import installed
from compressor.settings import DataSettings, ExportSettings, Settings, TrackingSettings
from compressor_plugins.pruning.magnitude import Magnitude

DATA = DataSettings(prefixes=6, proof_prefixes=5, prefix_tokens=8, continuation_tokens=16)

METRICS = ("fdtm", "sdtm", "divergent_perplexity", "perplexity", "kl")


def make_settings(schedule: Schedule, *compressors: Compressor, **changes: object) -> Settings:
    plugins = installed()
    settings = Settings(
        metric={name: plugins.metrics[name]() for name in METRICS},
        compressor={c.name: c for c in compressors or (Magnitude(),)},
        schedule=schedule,
        data=DATA,
        tracking=TrackingSettings(backend="none"),
        export=ExportSettings(verify=False),
    )
    settings.metric["perplexity"].tokens, settings.metric["perplexity"].window = 100, 8
    return replace(settings, **changes)


def run(folder: Path, settings: Settings) -> Record:
    folder.mkdir(exist_ok=True)
    return execute(settings, installed(), folder, {"seed": settings.seed}, "compressor run")
