"""A job of a multirun that an earlier start finished: it is not run again if it is still the job that is asked for."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compressor.artifacts.files import to_strict
from compressor.artifacts.folder_check import name_another
from compressor.artifacts.run_state import describe_differences, list_differences, refuse_differences
from compressor.artifacts.run_status import DONE, read_status
from compressor.commands.input_facts import list_input_facts, relevant_versions
from compressor.commands.lost_results import warn_of_lost
from compressor.commands.setup import choose_metrics
from compressor.contracts.declarations import read_ranks
from compressor.errors import OutputError
from compressor.plugins import Plugins
from compressor.report.run_report import read_report
from compressor.settings import Settings


def find_finished(folder: Path, settings: Settings, plugins: Plugins, config: Mapping[str, Any]) -> float | None:
    """The first metric of a job that an earlier start finished; None if it is to be run.

    Raises OutputError if the folder holds the finished run of another job, and ConfigError if the weights, texts, plan,
    code or versions changed since, and `resume.accept` does not name them. Reports of earlier versions have no such
    facts and are believed.
    """
    if read_status(folder).get("status") != DONE:
        return None
    warn_of_lost(folder)
    report, elsewhere = read_report(folder), f"move it away, or {name_another(multirun=True)}"
    if changed := list_differences(report.config, to_strict(config)):
        named = describe_differences(changed)
        raise OutputError(f"{folder} holds the finished run of another job (there → here): {named}; {elsewhere}")
    if report.facts:
        before = {"versions": relevant_versions(report.versions)} | report.facts
        now = list_input_facts(settings, choose_metrics(settings, plugins, read_ranks(settings.schedule)))
        differences = list_differences(before, to_strict(now))
        held = "a finished run with other results"
        refuse_differences(folder, differences, settings.resume.accept, held, elsewhere)
    scores = list(report.final.scores.values()) if report.final else []
    return scores[0].mean if scores else math.nan
