"""The console script: handles signals, and only then imports the commands, which takes a second."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from compressor.commands.stopping import stop


def open_closed_streams() -> None:
    """Let standard streams that were closed lead nowhere, so that no other file that is opened takes their place."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            try:
                os.fstat(number)
            except OSError:
                os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free, which is this one
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))


def find_resumed(arguments: Sequence[str]) -> Path | None:
    """The folder that `compressor resume` is to go on with; None in other commands, and if there is no such folder."""
    words = [argument for argument in arguments if argument != "--debug"]
    return Path(words[1]).absolute() if words[:1] == ["resume"] and os.path.isdir("".join(words[1:2])) else None


def main() -> None:
    """Run the command line; the process ends with its exit status."""
    stop.folder = find_resumed(sys.argv[1:])
    stop.listen()
    open_closed_streams()
    with stop.at_once():
        from compressor.commands.left_threads import end_without_threads
        from compressor.commands.main import main as run_command_line

        status = run_command_line()
    end_without_threads(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
