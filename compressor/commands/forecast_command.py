"""`compressor forecast`: what every size would cost, predicted from one backward pass."""

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from compressor.commands.config import add_forecast_defaults, import_plugins, read_config, store_schemas
from compressor.commands.failures import Failures
from compressor.commands.hydra_launch import launch
from compressor.commands.job_files import recorded_job
from compressor.commands.results_place import choose_place, hold, showing
from compressor.commands.stopping import stop
from compressor.commands.terminal import Terminal
from compressor.plugins import Plugins


def forecast(arguments: Sequence[str], terminal: Terminal) -> int:
    """`compressor forecast`: what every size would cost, predicted from one backward pass."""
    plugins = import_plugins()
    store_schemas(plugins)
    place = choose_place(add_forecast_defaults(arguments), plugins, many=False)
    failures = Failures(terminal)
    command = shlex.join(["compressor", "forecast", *arguments])
    with hold(place), showing(place):
        launch(place, make_forecast_job(plugins, terminal, failures, command))
    return failures.status


def make_forecast_job(
    plugins: Plugins, terminal: Terminal, failures: Failures, command: str
) -> Callable[[DictConfig], None]:
    """The function that Hydra calls for a forecast."""

    def job(config: DictConfig) -> None:
        with stop.at_once():
            from compressor.commands.forecast import execute
            from compressor.commands.next_command import choose_point
            from compressor.report.forecast_report import HTML_NAME, summarize_forecast

        folder = Path(HydraConfig.get().runtime.output_dir)
        with failures.caught(folder), recorded_job(folder, config), failures.caught(folder):
            settings, plain = read_config(config)
            record = execute(settings, plugins, folder, plain, command, terminal)
            terminal.show(summarize_forecast(record))
            terminal.say(f"forecast: {folder / HTML_NAME}")
            if (point := choose_point(record)) is not None:
                terminal.say(f"to make the row of {100 * point.amount:.1f} %: {point.command}")

    return job
