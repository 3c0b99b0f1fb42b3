"""What a job writes beside its results: how Hydra configured it, in `.hydra`, and its log.

Hydra itself would write both before it is known whether an earlier start has finished the job.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from compressor.artifacts.files import write_text
from compressor.artifacts.folder_lock import mark_folder
from compressor.artifacts.run_files import HYDRA_FOLDER, LOG
from compressor.commands.log_file import logging_to


@contextmanager
def recorded_job(folder: Path, config: DictConfig) -> Iterator[None]:
    """Write the configuration of the job that Hydra runs now, and inside, its log. Raises OutputError."""
    mark_folder(folder)
    hydra = HydraConfig.instance().cfg
    contents = {"config": config, "hydra": hydra, "overrides": HydraConfig.get().overrides.task}
    for name, content in contents.items():
        write_text(folder / HYDRA_FOLDER / f"{name}.yaml", OmegaConf.to_yaml(content))
    with logging_to(folder / LOG):
        yield
