"""What an interrupted run needs to go on: how it was started, what its results depend on, and its answers so far."""

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.artifacts.answers import Answers
from compressor.artifacts.files import parse_json, read_regular, set_aside, to_strict, write_json
from compressor.artifacts.folder_check import is_job, name_another, resolve
from compressor.artifacts.run_files import RUN, STATE, list_stored, remove_state
from compressor.errors import ConfigError, OutputError

ANSWERS = "answers"
NOT_COMPARED = ("resume", "tracking", "memory")
"""Groups of the configuration on which no result depends."""
FACTS = ("processor", "threads", "versions", "code", "weights", "dtype", "texts", "batch", "plan")
"""What results depend on besides the configuration."""
UNKNOWN = "state"
"""`resume.accept=[state]` takes answers of which nobody knows what they depend on, because run.json is damaged."""
EVERYTHING = "all"
"""`resume.accept=[all]` takes every difference."""
MOST_NAMED = 4
HASH = re.compile(r"[0-9a-f]{32,}")
CHANGED = "changed"
"""In place of two hashes, which say nothing."""
READ_BY = {"weights": "model.path", "plan": "schedule.path"}
"""What is compared by a hash -> the setting that names it."""


@dataclass
class RunState:
    """The state of one run in `folder`. `facts` are what results depend on besides the configuration.

    They are known once the model and the texts are loaded; before that they are empty, and there are no answers.
    """

    folder: Path
    config: dict[str, Any]
    command: str
    tracker_id: str = field(default_factory=lambda: secrets.token_hex(4))
    facts: dict[str, Any] = field(default_factory=dict)
    accepted: Collection[str] = ()
    answers: Answers = field(default_factory=Answers)

    def begin(self) -> None:
        """Write run.json, once status.json says that the run works here. A state without answers is removed before."""
        if not list_stored(self.folder):
            remove_state(self.folder.parent)
        self.write()

    def confirm(self, facts: Mapping[str, Any]) -> None:
        """Compare what results depend on with what it was; raises ConfigError where it differs and is not accepted.

        Afterwards the new facts are stored: later answers depend on them.
        """
        now = to_strict(facts)
        if self.facts:
            refuse_differences(self.folder.parent, list_differences(self.facts, now), self.accepted)
        self.facts = now
        self.write()

    def write(self) -> None:
        """Write run.json in one atomic step; raises OutputError."""
        content = {"config": self.config, "command": self.command, "tracker_id": self.tracker_id, "facts": self.facts}
        write_json(self.folder / RUN, {"sha256": hash_content(to_strict(content)), "content": content})

    def remove(self) -> None:
        """Remove the state of a run that is done."""
        with suppress(OutputError):
            remove_state(self.folder.parent)


def hash_content(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_state(run_folder: Path) -> RunState | None:
    """The state in the folder of a run; None if there is none. Raises OutputError for one that is damaged or missing.

    It is missing where there are answers, or weights of a training, and no run.json.
    """
    path = run_folder / STATE / RUN
    try:
        whole = parse_json(read_regular(path).decode("utf-8"))
        content = whole["content"]
        if hash_content(content) != whole["sha256"]:
            raise ValueError("its checksum is wrong")
        for key, kind in (("config", dict), ("command", str), ("tracker_id", str), ("facts", dict)):
            if not isinstance(content[key], kind):
                raise ValueError(f"`{key}` is a {type(content[key]).__name__}")
        return RunState(path.parent, content["config"], content["command"], content["tracker_id"], content["facts"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, FileNotFoundError) and not list_stored(path.parent):
            return None
        is_other = isinstance(error, KeyError | TypeError)
        known = getattr(error, "strerror", None) or (str(error).splitlines() or [repr(error)])[0]
        reason = "it is not what a run writes" if is_other else known
        raise OutputError(f"{path} is damaged: {reason}") from None


def open_state(
    run_folder: Path,
    config: Mapping[str, Any],
    command: str,
    accepted: Collection[str],
    answers: Answers,
) -> RunState:
    """The state of an interrupted run, if `run_folder` has one, else a new one; its answers are read into `answers`.

    Nothing is written before `begin`, but a damaged run.json is kept under another name. Raises CompressorError if the
    interrupted run has answers, and its configuration was another one, or is not known because run.json is damaged.
    """
    folder, plain, earlier = run_folder / STATE, to_strict(config), None
    stored = list_stored(folder)
    try:
        earlier = read_state(run_folder)
    except OutputError as error:
        if stored:
            refuse_unknown(str(error), folder, len(stored), accepted)
            set_aside(folder / RUN)
    answers.folder = folder / ANSWERS
    state = RunState(folder, plain, command, accepted=accepted, answers=answers)
    if earlier is not None and stored:
        refuse_other(run_folder, list_differences(earlier.config, plain), accepted)
        state.command, state.tracker_id, state.facts = earlier.command, earlier.tracker_id, earlier.facts
    if stored:
        answers.load()
    return state


def refuse_unknown(damage: str, folder: Path, count: int, accepted: Collection[str]) -> None:
    """Raise ConfigError for stored work of which nobody knows what it depends on, unless that is accepted."""
    if EVERYTHING in accepted or UNKNOWN in accepted:
        return
    files = f"{count} file{'s' if count > 1 else ''}"
    raise ConfigError(
        f"{damage}; the {files} of answers and trainings beside it cannot be compared with the settings, weights and "
        f"texts of now; take them all the same by resume.accept=[{UNKNOWN}], or remove {folder} to start from the "
        "beginning"
    )


def refuse_other(run_folder: Path, differences: Mapping[str, str], accepted: Collection[str]) -> None:
    """Raise CompressorError for other settings than those of the interrupted run.

    The settings of a multirun were compared before its jobs start, so a job with other ones was moved here by hand, and
    accepting them would give the answers of one job to another.
    """
    if differences and is_job(resolve(run_folder)):
        named = describe_differences(differences)
        raise OutputError(
            f"{run_folder} holds the interrupted run of another job (there → here): {named}; "
            f"move the folders of the jobs back to their numbers, or {name_another(multirun=True)}"
        )
    refuse_differences(run_folder, differences, accepted)


def refuse_differences(
    run_folder: Path,
    differences: Mapping[str, str],
    accepted: Collection[str],
    held: str = "an interrupted run with other answers",
    elsewhere: str = "or choose another folder",
) -> None:
    """Raise ConfigError for differences that are not accepted, by their own name or by that of their group.

    The message says what the folder `held`, and how to write `elsewhere`.
    """
    left = {
        name: words
        for name, words in differences.items()
        if EVERYTHING not in accepted and not any(name == key or name.startswith(f"{key}.") for key in accepted)
    }
    if not left:
        return
    keys = ",".join(sorted({name.partition(".")[0] for name in left}))
    raise ConfigError(
        f"{run_folder} holds {held}: {describe_differences(left)}; take them by resume.accept=[{keys}], {elsewhere}"
    )


def describe_differences(differences: Mapping[str, str]) -> str:
    """The first differences, and how many more there are."""
    named = ", ".join(describe_difference(*item) for item in list(differences.items())[:MOST_NAMED])
    return named + (f" and {len(differences) - MOST_NAMED} more" if len(differences) > MOST_NAMED else "")


def describe_difference(name: str, words: str) -> str:
    """Such as `seed 0 → 1`, or `texts of data.path=my.txt changed`."""
    if words != CHANGED:
        return f"{name} {words}"
    first, _, rest = name.partition(".")
    setting = rest or READ_BY.get(first)
    return f"{first} of {setting} {words}" if setting else f"{first} {words}"


def list_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, str]:
    """Dotted name -> old and new value, for all values that differ."""
    old, new = dict(flatten(before)), dict(flatten(after))
    return {
        name: compare_values(old.get(name, "none"), new.get(name, "none"))
        for name in {**old, **new}
        if old.get(name) != new.get(name) and name.partition(".")[0] not in NOT_COMPARED
    }


def compare_values(old: object, new: object) -> str:
    """Two values that differ, in words."""
    is_hash = [isinstance(value, str) and bool(HASH.fullmatch(value)) for value in (old, new)]
    return CHANGED if all(is_hash) else f"{old} → {new}"


def flatten(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted name and value of everything inside nested mappings."""
    for key, item in value.items():
        if isinstance(item, Mapping):
            yield from flatten(item, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", item
