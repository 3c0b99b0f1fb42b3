"""How a run or a multirun was started, in its folder: `compressor resume` starts it so again.

For a multirun the jobs are recorded too, so that those of another configuration do not get into its folder.
"""

import itertools
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from compressor.artifacts.files import read_json, write_json
from compressor.artifacts.run_files import HYDRA_FOLDER, list_jobs
from compressor.artifacts.run_state import list_differences
from compressor.commands.checked_overrides import MOST_RUNS, alternatives, parse_overrides
from compressor.commands.config import add_overrides, parse_arguments, replace_overrides
from compressor.commands.overrides import quote
from compressor.commands.resumable import ARGUMENTS, check_harmless, explain_no_arguments
from compressor.errors import OutputError

FOLDER_KEYS = ("hydra.run.dir", "hydra.sweep.dir")
"""The keys of the folder for results: of one run, and of a multirun."""
COMMAND_FILE = Path(HYDRA_FOLDER) / ARGUMENTS
"""Beside Hydra's own record: the command line, relative to the working directory."""
BASIC_SWEEPER = {
    "_target_": "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "max_batch_size": None,
    "params": None,
}
"""The settings of the sweeper that runs every combination of the values."""
RESUME = re.compile(r"resume\.\w+=")
"""Overrides of the command `resume`."""


@dataclass(frozen=True)
class Jobs:
    """The jobs of a multirun: the `config` of the first, not interpolated, and the values of the keys that vary.

    `values` holds a list of overrides for each of these keys; the last key varies fastest. `sweeper` are the settings
    of what chooses the jobs.
    """

    config: dict[str, Any]
    values: list[list[str]]
    sweeper: dict[str, Any]

    @property
    def are_listed(self) -> bool:
        """Whether all jobs come from `values`, and none from parameters or another algorithm of the sweeper."""
        return self.sweeper == {"hydra": {"sweeper": BASIC_SWEEPER}}

    def list_overrides(self) -> Iterator[str]:
        """The overrides in which each job differs, in the order of the jobs."""
        return (" ".join(values) or "nothing that varies" for values in itertools.product(*self.values))


def describe_jobs(overrides: Sequence[str], composed: DictConfig) -> Jobs:
    """The jobs of a multirun with these overrides, of which `composed` is the first, with the settings of Hydra."""
    varied = [override for override in parse_overrides(overrides) if override.is_sweep_override()]
    plain = OmegaConf.to_container(
        OmegaConf.masked_copy(composed, [key for key in composed if key != "hydra"]), enum_to_str=True
    )
    assert isinstance(plain, dict)
    sweeper = OmegaConf.to_container(composed.hydra.sweeper)
    return Jobs(
        {str(key): value for key, value in plain.items()},
        [alternatives(override) for override in varied],
        {"hydra": {"sweeper": sweeper}},
    )


def check_jobs(folder: Path, jobs: Jobs) -> None:
    """Raise OutputError if the folder of a multirun holds a job that is not among these `jobs`, or is another one."""
    found = list_jobs(folder) if folder.is_dir() else []
    if not found:
        return
    last = int(found[-1].name)
    try:
        earlier = Jobs(**read_json(folder / COMMAND_FILE)["jobs"])
        before = itertools.islice(earlier.list_overrides(), min(last, MOST_RUNS) + 1)
        changed = list_differences(earlier.sweeper, jobs.sweeper)
        changed = changed or compare_overrides(before, jobs.list_overrides())
        changed = changed or list_differences(earlier.config, jobs.config)
    except (OutputError, KeyError, TypeError, AttributeError, OverflowError):
        raise OutputError(
            f"{folder} holds jobs of a multirun, and {COMMAND_FILE} in it does not say of which; choose another by "
            "hydra.sweep.dir=DIR"
        ) from None
    for name, words in changed.items():
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise OutputError(
            f"{folder} holds the jobs of another multirun: {name} {words}{more}; choose another by hydra.sweep.dir=DIR"
        )
    total = math.prod(map(len, jobs.values))
    if jobs.are_listed and last >= total:
        raise OutputError(
            f"{folder} holds the job {last}, and this multirun has only {total}, from 0 on; choose another by "
            "hydra.sweep.dir=DIR"
        )


def compare_overrides(before: Iterator[str], now: Iterator[str]) -> dict[str, str]:
    """The first job that is another one now, with its overrides before and now; further jobs are no difference."""
    for number, (old, new) in enumerate(zip(before, itertools.chain(now, itertools.repeat("none")), strict=False)):
        if old != new:
            return {f"job {number}": f"{old} → {new}"}
    return {}


def write_command(folder: Path, arguments: Sequence[str], jobs: Jobs | None) -> None:
    """Write the arguments of a run, or of a multirun with these `jobs`, to its folder, for `compressor resume`."""
    kept = [argument for argument in arguments if not RESUME.match(argument)]
    key = FOLDER_KEYS[jobs is not None]
    record = {"arguments": kept, "key": key, "directory": os.getcwd()} | ({"jobs": asdict(jobs)} if jobs else {})
    write_json(folder / COMMAND_FILE, record)


def find_directory(folder: Path) -> Path | None:
    """The working directory in which a run was started, if it is another one than now; None if that is not known."""
    directory = read_json(folder / COMMAND_FILE).get("directory")
    if not isinstance(directory, str) or os.path.realpath(directory) == os.path.realpath("."):
        return None
    return Path(directory)


def read_arguments(folder: Path, trusted: Sequence[str] = ()) -> list[str]:
    """The arguments of `compressor run` with which a run or a multirun in this folder was started, and its folder."""
    path = folder / COMMAND_FILE
    damaged = f"{path} is damaged; start the command again by hand"
    if not path.exists():
        raise OutputError(explain_no_arguments(folder))
    try:
        command = read_json(path)
        arguments, key = command["arguments"], command["key"]
        is_whole = isinstance(arguments, list) and all(isinstance(argument, str) for argument in arguments)
        if not is_whole or key not in FOLDER_KEYS:
            raise TypeError
    except (KeyError, TypeError):
        raise OutputError(damaged) from None
    check_harmless(arguments, trusted, path)
    overrides = parse_arguments(arguments).overrides
    others = [line for line in overrides if line.partition("=")[0] != key]
    place = folder if find_directory(folder) is None else folder.absolute()
    return add_overrides(replace_overrides(arguments, others), after=[f"{key}={quote(str(place))}"])
