"""Cases that took long are kept in a folder, and a benchmark goes on from there."""

import pickle
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Key = tuple[Hashable, ...]


@dataclass
class Keep:
    """What was measured of cases, in memory, and with a `folder` in a file for each case there."""

    folder: Path | None = None
    known: dict[Key, Any] = field(default_factory=dict, repr=False)

    def __contains__(self, key: Key) -> bool:
        path = self._place(key)
        if key not in self.known and path and path.exists():
            self.known |= pickle.loads(path.read_bytes())
        return key in self.known

    def __getitem__(self, key: Key) -> Any:  # noqa: ANN401 - whatever was measured
        if key not in self:
            raise KeyError(key)
        return self.known[key]

    def __setitem__(self, key: Key, value: object) -> None:
        self.known[key] = value
        if path := self._place(key):
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_bytes(pickle.dumps({key: value}))
            partial.rename(path)

    def _place(self, key: Key) -> Path | None:
        name = "-".join(map(str, key)).replace(" ", "_").replace("/", "_")
        return self.folder / f"{name}.pickle" if self.folder else None
