"""What stands in the folder of a run: the names of our files, and how files of others are found among them."""

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from compressor.artifacts.files import DAMAGED, append_json_line, parse_json, read_regular, remove_file, write_bytes

MARK = ".compressor"
"""The file that says that a folder is ours. It holds the owner of the lock."""
STATUS = "status.json"
STATE = "state"
"""The folder with the answers of a run that can go on."""
FILES = (
    "report.html", "report.json", "plan.json", "rows.safetensors", "scores.jsonl", "sequences.jsonl",
    "reference.safetensors", "model.gguf", "model-unverified.gguf", "forecast.html", "forecast.json",
)  # fmt: skip
"""What a command may leave beside `model/`; a second command removes what a failed one left."""
FOLDERS = ("model", "model-unverified")
LOG = "compressor.log"
HYDRA_FOLDER = ".hydra"
HYDRA = frozenset({HYDRA_FOLDER, LOG})
"""The record of a configuration and the log, which a job writes before anything else."""
HYDRA_FILES = ("config.yaml", "hydra.yaml", "overrides.yaml", "arguments.json")
"""What stands in `.hydra`."""
COMPARISON = "comparison.json"
MULTIRUN = ("multirun.yaml", COMPARISON)
"""What stands in the folder of a multirun beside those of its jobs."""
BEGINNING = frozenset({MARK, "multirun.yaml", *HYDRA_FILES})
"""Files that are written before anything is done."""
UNFINISHED = re.compile(rf"\.({'|'.join(map(re.escape, sorted({*BEGINNING, COMPARISON})))})\.\w+\.tmp")
"""What a process that was killed leaves of these files, and of the table of a multirun."""
SAVED = ".model-files.jsonl"
"""The names of the files in `model`, in a line for each time it was saved."""
RUN = "run.json"
"""The file in `state` that says on what the answers there depend."""
STATE_FILE = re.compile(rf"\..+\.tmp|(run\.json|(round-)?[0-9]+\.safetensors)({re.escape(DAMAGED)})?")
"""What a run writes into `state` and into the folders in it."""


def list_jobs(folder: Path) -> list[Path]:
    """The numbered folders of a multirun, 10 after 9."""
    numbered = [path for path in folder.iterdir() if is_number(path.name) and path.is_dir()]
    return sorted(numbered, key=lambda path: (int(path.name), path.name))


def find_links(folder: Path) -> Iterator[Path]:
    """Links in places where a run or a multirun would write: they may lead out of its folder."""
    own = {STATUS, STATE, SAVED, *FILES, *FOLDERS, *HYDRA, *MULTIRUN}
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and (path.name in own or path.name.isdecimal()):
            yield path
    for name in (HYDRA_FOLDER, STATE):
        yield from (path for path in list_files(folder / name) if path.is_symlink())


def find_misplaced(folder: Path) -> Iterator[tuple[Path, str]]:
    """What is no regular file in place of a file of a run or a multirun, or no folder in place of a folder of it.

    The text says which of the two a run writes there. Opening a pipe could take for ever.
    """
    folders, files = {STATE, HYDRA_FOLDER, *FOLDERS}, {STATUS, SAVED, LOG, *FILES, *MULTIRUN}
    for path in sorted(folder.iterdir()):
        if path.name in files and not path.is_file():
            yield path, "a file"
        if (path.name in folders or is_number(path.name)) and not path.is_dir():
            yield path, "a folder"
    inside = [folder / HYDRA_FOLDER / name for name in HYDRA_FILES] + list_files(folder / STATE)
    yield from ((path, "a file") for path in inside if path.exists() and not path.is_file())


def name_kind(path: Path) -> str:
    """What a path is, in words."""
    mode = path.stat().st_mode
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFREG: "a file", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")


def is_number(name: str) -> bool:
    """Whether a name is that of the folder of a job."""
    return re.fullmatch(r"[0-9]+", name) is not None


def separate_links(folder: Path) -> None:
    """Copy the files that are written in place where they are hard links, so that another folder's files stay."""
    for path in [folder / name for name in (MARK, LOG, SAVED, *MULTIRUN)] + list_files(folder / HYDRA_FOLDER):
        with suppress(OSError):
            if path.is_file() and not path.is_symlink() and path.stat().st_nlink > 1:
                write_bytes(path, path.read_bytes())


def find_foreign(folder: Path) -> Iterator[Path]:
    """Files of others in the folders that a second start clears: `state`, and those of a saved model."""
    for path in list_files(folder / STATE):
        if not STATE_FILE.fullmatch(path.name):
            yield path
    saved = read_saved(folder)
    for name in FOLDERS:
        for path in list_files(folder / name):
            if str(path.relative_to(folder / name)) not in saved:
                yield path


def find_leftovers(folder: Path) -> list[Path]:
    """What a process that was killed left of files and folders that were only half-written."""
    patterns = [f".{name}.*.tmp" for name in (*FILES, STATUS, "verification", "room")]
    patterns += [f".{name}.{end}" for name in FOLDERS for end in ("partial", "old")]
    return [path for pattern in patterns for path in folder.glob(pattern)]


def find_unfinished(folder: Path) -> list[Path]:
    """What is only half-written of the first files of a run, or of the table of a multirun."""
    return [path for path in (*folder.iterdir(), *list_files(folder / HYDRA_FOLDER)) if UNFINISHED.fullmatch(path.name)]


def list_files(folder: Path) -> list[Path]:
    """Everything in the folder and its subfolders that is no folder, links included, sorted."""
    found = []
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        found += [Path(place, name) for name in (*files, *links)]
    return sorted(found)


def record_saved(folder: Path, partial: Path) -> None:
    """Write down which files are in `partial`, which is about to become `folder`: only these may be removed later.

    Nothing is written outside of the folder of a run.
    """
    if (folder.parent / MARK).is_file():
        names = [str(path.relative_to(partial)) for path in list_files(partial)]
        append_json_line(folder.parent / SAVED, names)


def read_saved(folder: Path) -> set[str]:
    """The names of all files that were saved as part of a model; a line that is damaged names none."""
    found: set[str] = set()
    with suppress(OSError):
        for line in read_regular(folder / SAVED).splitlines():
            with suppress(ValueError):
                names = parse_json(line)
                found.update(name for name in (names if isinstance(names, list) else ()) if isinstance(name, str))
    return found


def find_lost(folder: Path, written: object) -> list[str]:
    """Which of the files that a run has `written`, as its status says, are gone; `model` is its saved model."""
    names = written if isinstance(written, list) else []
    lost = [name for name in FILES if name in names and not os.path.lexists(folder / name)]
    is_gone = not any(os.path.lexists(folder / name) for name in FOLDERS)
    return [*lost, FOLDERS[0]] if is_gone and read_saved(folder) else lost


def list_stored(folder: Path) -> list[Path]:
    """The files of answers and of trainings in the state's `folder`, damaged ones too."""
    ends = (".safetensors", f".safetensors{DAMAGED}")
    return [path for path in list_files(folder) if path.name.endswith(ends) and not path.name.startswith(".")]


def remove_state(folder: Path) -> None:
    """Remove the files of ours in `state`, and the folders that are then empty; raises OutputError."""
    for path in list_files(folder / STATE):
        if STATE_FILE.fullmatch(path.name):
            remove_file(path)
    for place, _, _ in os.walk(folder / STATE, topdown=False):
        with suppress(OSError):  # a file of the user is in it
            os.rmdir(place)


def is_unused(folder: Path) -> bool:
    """Whether nothing was done in the folder: it holds only what is written before that."""
    files = [path for path in list_files(folder) if not UNFINISHED.fullmatch(path.name)]
    return all(path.name in BEGINNING and not path.is_symlink() for path in files)
