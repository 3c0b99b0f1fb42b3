"""Lets Hydra compose the configuration of each job, and turns what it raises into one line."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import hydra
from omegaconf import DictConfig

from compressor.artifacts.files import is_full_disk
from compressor.artifacts.folder_check import name_another
from compressor.commands.config import CONFIG_MODULE
from compressor.commands.failures import FULL_ERROR, blame_hydra_settings, shows_whole
from compressor.commands.results_place import Place
from compressor.errors import CompressorError, OutputError


def launch(place: Place, job: Callable[[DictConfig], Any]) -> None:
    """Let Hydra compose the configuration and call the job, which handles its own failures.

    Raises OutputError where Hydra cannot write to the folder for results, and ConfigError for whatever else Hydra, or
    code that a setting of Hydra names, raises around the job.
    """
    sys.argv = ["compressor", *place.line]
    shown = shows_whole()
    try:
        with raising_hydra():
            hydra.main(version_base="1.3", config_path=f"pkg://{CONFIG_MODULE}", config_name="config")(job)()
    except CompressorError:
        raise
    except Exception as error:
        if shown:
            raise
        if place.folder is not None and is_full_disk(error):
            raise OutputError(
                f"cannot write to {place.folder}: {getattr(error, 'strerror', error)}; free some space and start the "
                f"command again, or {name_another(place.multirun)}"
            ) from None
        raise blame_hydra_settings(error) from None


@contextmanager
def raising_hydra() -> Iterator[None]:
    """Inside, Hydra raises what it would otherwise print in lines of its own before it exits."""
    before = os.environ.get(FULL_ERROR)
    os.environ[FULL_ERROR] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[FULL_ERROR]
        else:
            os.environ[FULL_ERROR] = before
