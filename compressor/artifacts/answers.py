"""The answers that a search has computed so far, on disk, so that an interrupted run goes on where it was.

A search is a function of its answers: with the same ones, a schedule asks the same and keeps the same. Answers are
stored under the content of their question, so that the order in which they are asked for again does not matter.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.artifacts.checked_arrays import Arrays, Content, read_arrays, write_arrays
from compressor.artifacts.folder_lock import require_held
from compressor.contracts import Plan, Treatment

BLOCK_SECONDS = 10.0
"""Answers of at least so many seconds of work are written together."""
SEPARATOR = "|"


def list_facts(plan: Plan) -> list[list[object]]:
    """A plan as facts that JSON can hold, exactly, whatever the order of its components."""
    return [[name, *describe(treatment)] for name, treatment in sorted(plan.items())]


def describe(treatment: Treatment | None) -> list[object]:
    """A treatment as facts that JSON can hold, exactly."""
    if treatment is None:
        return []
    rows = None if treatment.rows is None else hash_facts([repr(amount) for amount in treatment.rows])
    return [treatment.compressor, repr(treatment.amount), repr(sorted(dict(treatment.options).items())), rows]


def hash_facts(*facts: object) -> str:
    """Facts that JSON can hold as a short text."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]


def split_block(block: Content) -> dict[str, Content]:
    """The answers of a block by their keys; those without facts are left out."""
    arrays: dict[str, Arrays] = {}
    for name, array in block.arrays.items():
        key, _, rest = name.partition(SEPARATOR)
        arrays.setdefault(key, {})[rest] = array
    return {
        key: Content(arrays.get(key, {}), facts) for key, facts in block.facts.items() if isinstance(facts, Mapping)
    }


@dataclass
class Answers:
    """Arrays and facts by key. Each block of new answers is a file of its own, which is never changed.

    With `folder` None nothing is stored. If a run `is_stopping`, `pause` writes. `after_block` is called
    whenever all answers so far are on disk. `context` stands for the plans that were kept, on which answers depend.
    """

    folder: Path | None = None
    is_stopping: Callable[[], bool] = lambda: False
    after_block: Callable[[], None] = lambda: None
    context: str = ""
    found: dict[str, Content] = field(default_factory=dict)
    unsaved: dict[str, Content] = field(default_factory=dict)
    blocks: int = 0
    saved_at: float = field(default_factory=time.monotonic)

    def make_key(self, *facts: object) -> str:
        """The key of a question about the model as it is now; `facts` are what JSON can hold."""
        return hash_facts(self.context, *facts)

    def load(self) -> int:
        """Read all blocks, and drop damaged ones; returns how many answers there are."""
        for path in sorted(self.folder.glob("*.safetensors")) if self.folder is not None else ():
            self.blocks = max(self.blocks, int(path.stem) + 1) if path.stem.isdecimal() else self.blocks
            if (block := read_arrays(path, lost="its answers are computed again")) is not None:
                self.found.update(split_block(block))
        return len(self.found)

    def find(self, key: str) -> Content | None:
        """The answer to a question; None if it was not answered."""
        return self.found.get(key)

    def add(self, key: str, arrays: Arrays, facts: Mapping[str, Any] | None = None) -> None:
        """Store an answer; it is on disk after the next block."""
        if self.folder is not None:
            self.unsaved[key] = Content(arrays, facts or {})

    def pause(self) -> None:
        """Write the answers so far if enough work was done since the last block, or if the run is stopping."""
        if self.is_stopping() or time.monotonic() - self.saved_at >= BLOCK_SECONDS:
            self.save()

    def enter(self, *kept: object) -> None:
        """A plan was kept; `kept` are facts of it that JSON can hold. Later answers belong to the changed model."""
        self.context = hash_facts(self.context, *kept)
        self.save()

    def save(self) -> None:
        """Write the answers that are not on disk yet; raises OutputError."""
        if self.unsaved and self.folder is not None:
            require_held(self.folder.parent.parent)
            arrays = {
                f"{key}{SEPARATOR}{name}": array
                for key, content in self.unsaved.items()
                for name, array in content.arrays.items()
            }
            facts = {key: content.facts for key, content in self.unsaved.items()}
            write_arrays(self.folder / f"{self.blocks:06d}.safetensors", "answers", arrays, facts)
            self.unsaved, self.blocks = {}, self.blocks + 1
        self.saved_at = time.monotonic()
        self.after_block()
