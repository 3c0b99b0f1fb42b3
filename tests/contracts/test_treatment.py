"""Treatments are compared by what they do, so that trials can be compared."""

import itertools

import pytest

from compressor.contracts import Treatment

DIFFERENT = [
    Treatment("int8", 0.5),
    Treatment("int4", 0.5),
    Treatment("int8", 0.25),
    Treatment("int8", 0.5, {"group": 32}),
    Treatment("int8", 0.5, {"group": 64}),
    Treatment("int8", 0.5, {"shape": [1, 2]}),
    Treatment("int8", 0.5, rows=(0.25, 0.75)),
    Treatment("int8", 0.5, rows=(0.75, 0.25)),
]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Treatment("int8", 0.5), Treatment("int8", 0.5, {})),
        (Treatment("int8", 1), Treatment("int8", 1.0)),
        (Treatment("int8", 0.5, {"a": [1], "b": {}}), Treatment("int8", 0.5, {"b": {}, "a": [1]})),
        (Treatment("int8", 0.5, rows=(0.25, 0.75)), Treatment("int8", 0.5, rows=(0.25, 0.75))),
    ],
)
def test_equal_treatments_have_one_hash(one: Treatment, other: Treatment) -> None:
    assert one == other and hash(one) == hash(other)
    assert len({("component", one), ("component", other)}) == 1


def test_treatments_that_differ_are_different_keys() -> None:
    assert all(one != other for one, other in itertools.combinations(DIFFERENT, 2))
    assert len(set(DIFFERENT)) == len(DIFFERENT)
