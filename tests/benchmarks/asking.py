"""Scripts of tests/benchmarks/peers are run in environments of their own: a task in a file, an answer in another."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def ask_peer(script: str, environment: str, environments: Path | None, task: dict[str, Any]) -> dict[str, Any] | None:
    """What the script of this name answers in the environment; None where it fails, and the last line of why."""
    python = str((environments / environment / "bin" / "python").absolute()) if environments else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, log = (Path(folder) / name for name in ("task.json", "answer.json", "log"))
        asked.write_text(json.dumps(task))
        command = [python, "-m", f"{__package__}.peers.{script}", str(asked), str(answered)]
        with log.open("w") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code:
            print(f"{environment} is left out: {log.read_text().strip().splitlines()[-1]}", file=sys.stderr)
            return None
        answer: dict[str, Any] = json.loads(answered.read_text())
        return answer
