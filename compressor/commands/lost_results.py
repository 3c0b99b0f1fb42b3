"""Results of a finished run that are gone: it stays finished, and who asks for it is told."""

import logging
from pathlib import Path

from compressor.artifacts.run_files import find_lost
from compressor.artifacts.run_status import read_status

log = logging.getLogger(__name__)


def warn_of_lost(folder: Path) -> None:
    """Warn of files that the finished run in `folder` wrote, and that are gone."""
    if lost := find_lost(folder, read_status(folder).get("files")):
        log.warning(
            "the run in %s is done, and %s of it %s gone; to have what is gone, start the run in another folder",
            folder,
            ", ".join(lost),
            "is" if len(lost) == 1 else "are",
        )
