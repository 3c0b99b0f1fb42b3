"""The console script: handles signals, and only then imports the commands, which takes a second."""

import sys

from compressor.commands.stopping import stop


def main() -> None:
    """Run the command line; the process ends with its exit status."""
    stop.listen()
    with stop.at_once():
        from compressor.commands.main import main as run_command_line

        status = run_command_line()
    sys.exit(status)


if __name__ == "__main__":
    main()
