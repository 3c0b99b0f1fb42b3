"""Scripts of tests/benchmarks/peers are run in environments of their own: a task in a file, an answer in another."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any


def ask_peer(script: str, environment: str, environments: Path | None, task: dict[str, Any]) -> dict[str, Any] | None:
    """What the script of this name answers in the environment; None where it fails, and the last line of why."""
    python = environments / environment / "bin" / "python" if environments else Path(sys.executable)
    if not python.exists():
        return leave_out(environment, f"there is no {python}")
    with tempfile.TemporaryDirectory() as folder:
        asked, answered, log = (Path(folder) / name for name in ("task.json", "answer.json", "log"))
        asked.write_text(json.dumps(task))
        command = [str(python.absolute()), "-m", f"{__package__}.peers.{script}", str(asked), str(answered)]
        with log.open("w") as output:
            code = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT).returncode
        if code:
            return leave_out(environment, f"exit {code}: {log.read_text().strip().split(chr(10))[-1]}")
        answer: dict[str, Any] = json.loads(answered.read_text())
        return answer


def leave_out(environment: str, why: str) -> None:
    print(f"{environment} is left out: {why}", file=sys.stderr)
