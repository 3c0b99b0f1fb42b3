"""What a run says of itself in status.json: what it is doing, in which process, and which files are its own."""

import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from compressor.artifacts.files import parse_json, read_regular
from compressor.artifacts.run_files import STATUS

RUNNING, INTERRUPTED, FAILED, DONE = "running", "interrupted", "failed", "done"
STATUSES = (RUNNING, INTERRUPTED, FAILED, DONE)


def read_status(folder: Path) -> dict[str, Any]:
    """The content of status.json; empty if there is none that can be read."""
    try:
        status = parse_json(read_regular(folder / STATUS).decode("utf-8"))
    except (OSError, ValueError):
        return {}
    return status if isinstance(status, dict) else {}


def describe_status(status: str, command: str, files: Sequence[str]) -> dict[str, object]:
    """The content of status.json."""
    process = {"pid": os.getpid(), "host": socket.gethostname(), "heartbeat": time.time()}
    return {"status": status} | process | {"command": command, "files": [*files]}
