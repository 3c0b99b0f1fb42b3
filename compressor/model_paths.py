"""Whether `model.path` names a folder of this machine or a model of the hub. Nothing here needs torch."""

import re
from importlib.resources import files
from pathlib import Path

from compressor.errors import ModelError

EMBEDDED = Path(str(files("compressor") / "tiny"))
"""The folder of the embedded model."""
HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")


def find_local_folder(given: str) -> Path | None:
    """The folder that is given; None for what may be an id of the hub. Raises ModelError for anything else."""
    if not given:
        raise ModelError("`model.path` is needed and not given; set it to a folder or a hub id")
    path = Path(given).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise ModelError(f"`model.path` must be a folder, got the file `{given}`; give the folder that holds it")
    nested = "/" in given and path.parent.exists()
    if given.startswith(("/", ".", "~")) or nested or not HUB_ID.fullmatch(given):
        raise ModelError(f"`model.path`: no such folder `{given}`; check the spelling, or give a hub id `org/name`")
    return None
