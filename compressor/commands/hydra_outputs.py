"""Hydra writes nothing into folders of jobs: settings by which it would are refused before it starts."""

from omegaconf import DictConfig, OmegaConf

from compressor.artifacts.run_files import LOG
from compressor.errors import ConfigError

FIXED = {
    "output_subdir": None,
    "job.name": LOG.removesuffix(".log"),
    "sweep.subdir": "${hydra.job.num}",
    "job.chdir": None,
}
"""Settings whose value other parts of a run rely on. Interpolations are compared as they are written."""


def check_outputs(config: DictConfig) -> None:
    """Raise ConfigError where the settings of Hydra would have it write files of its own."""
    plain = OmegaConf.to_container(config)
    assert isinstance(plain, dict)
    for key, needed in FIXED.items():
        group, _, name = key.rpartition(".")
        given = (plain[group] if group else plain)[name]
        if given != needed and not (needed is None and given is False):
            raise ConfigError(
                f"`hydra.{key}` cannot be changed, got {given!r:.200}: the files of a run are found by it; leave it out"
            )
    for group in ("job_logging", "hydra_logging"):
        for name, handler in ((plain[group] or {}).get("handlers") or {}).items():
            path = handler.get("filename") if isinstance(handler, dict) else None
            if path is not None:
                raise ConfigError(
                    f"`hydra.{group}.handlers.{name}.filename` cannot be changed, got {path!r:.200}: the log of a run "
                    f"is {LOG} in its folder, and hydra/job_logging=stdout shows it; leave it out"
                )
