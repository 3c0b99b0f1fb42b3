"""Dataclasses from JSON: strict about types, tolerant of other versions, one line for every error."""

import json
import math
import os
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest

from compressor.artifacts.files import to_strict
from compressor.artifacts.from_json import rebuild
from compressor.contracts import Score


@dataclass
class Inner:
    name: str
    shape: tuple[int, int] = (1, 2)
    value: float = 0.0


@dataclass
class Outer:
    count: int
    share: float
    free: dict[str, Any] = field(default_factory=dict)
    inner: Inner | None = None
    by_name: dict[str, Inner] = field(default_factory=dict)
    rows: list[Inner] = field(default_factory=list)
    limit: float | None = None
    is_done: bool = False


def test_everything_comes_back() -> None:
    whole = Outer(3, 0.5, {"a": [1, None]}, Inner("x"), {"b": Inner("y", (3, 4))}, [Inner("z")], 2.0, True)
    assert rebuild(Outer, json.loads(json.dumps(asdict(whole)))) == whole
    assert rebuild(Outer, {"count": 3, "share": 1}) == Outer(3, 1.0)


def test_a_score_with_numbers_that_are_not_finite_comes_back() -> None:
    score = Score(math.nan, *range(9), n=3)  # type: ignore[arg-type]
    found = rebuild(Score, json.loads(json.dumps(to_strict(asdict(score)))))
    assert math.isnan(found.mean) and asdict(found) | {"mean": 0} == asdict(score) | {"mean": 0}
    assert rebuild(Outer, {"count": 3, "share": 1, "limit": None}).limit is None


def test_a_file_of_another_version_is_read_as_far_as_it_goes() -> None:
    assert rebuild(Outer, {"count": 1, "share": 1.0, "new": {"x": 1}, "inner": {"name": "x", "newer": 2}}) == Outer(
        1, 1.0, inner=Inner("x")
    )


def test_a_path_that_is_not_text_comes_back() -> None:
    name = os.fsdecode(b"model-\xff")
    assert rebuild(Outer, json.loads(json.dumps({"count": 1, "share": 1.0, "free": {"path": name}}))).free == {
        "path": name
    }


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        ([], "the whole must be an object, got list"),
        ({"count": 1.0}, "`count` must be int, got 1.0"),
        ({"count": True}, "`count` must be int, got True"),
        ({"count": None}, "`count` must be int, got None"),
        ({"count": "1"}, "`count` must be int, got '1'"),
        ({"share": "1"}, "`share` must be float, got '1'"),
        ({"share": False}, "`share` must be float, got False"),
        ({"share": 10**400}, "`share` must be float, got an integer that is too large for one"),
        ({"limit": 10**400}, "`limit` must be float, got an integer that is too large for one"),
        ({"is_done": 1}, "`is_done` must be bool, got 1"),
        ({"free": [1]}, "`free` must be dict[str, typing.Any], got [1]"),
        ({"inner": 1}, "`inner` must be an object, got int"),
        ({"inner": {}}, "`inner.name` is missing"),
        ({"inner": {"name": "x", "shape": [1, 2, 3]}}, "`inner.shape` must be tuple[int, int], got [1, 2, 3]"),
        ({"inner": {"name": "x", "shape": [1, 2.0]}}, "`inner.shape` must be int, got 2.0"),
        ({"by_name": {"a": {"name": 1}}}, "`by_name.a.name` must be str, got 1"),
        ({"by_name": {"a\nb": 1}}, "`by_name.'a\\nb'` must be an object, got int"),
        ({"rows": [{"name": "x"}, {"name": "y", "value": []}]}, "`rows.1.value` must be float, got []"),
        ({"rows": {}}, "`rows` must be list[tests.artifacts.test_from_json.Inner], got {}"),
    ],
)
def test_what_does_not_fit_is_one_line(data: Any, complaint: str) -> None:  # noqa: ANN401
    needed = {"count": 1, "share": 1.0}
    with pytest.raises((TypeError, ValueError)) as caught:
        rebuild(Outer, needed | data if isinstance(data, dict) else data)
    assert str(caught.value) == complaint


def test_a_missing_field_is_one_line() -> None:
    with pytest.raises(ValueError, match=r"^`count` is missing$"):
        rebuild(Outer, {"share": 1.0})
