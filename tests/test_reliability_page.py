"""Every test that docs/reliability.md names exists."""

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "reliability.md"
NAME = re.compile(r"`((?:[\w/]+\.py|…)(?:::\w+…?)?|test_\w+…|…\w+…)`")


def list_named() -> list[tuple[str, str]]:
    """(file, start of a test's name) of everything in the column of tests; the name is empty where a file is named."""
    found = []
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        file = ""
        for name in NAME.findall(line.rsplit("|", 4)[1]) if line.startswith("| ") and ".py" in line else ():
            before, _, test = name.partition("::")
            file, test = (before, test) if before.endswith(".py") else (file, test or before)
            found.append((file, test.removesuffix("…")))
    return found


def test_the_page_names_tests() -> None:
    assert len(list_named()) > 80


@pytest.mark.parametrize(("file", "test"), sorted({*list_named()}))
def test_a_named_test_exists(file: str, test: str) -> None:
    places = [path for path in TESTS.rglob("test_*.py") if f"/{path}".endswith(f"/{file}")]
    assert places, f"no {file}"
    assert any(f"\ndef {test}" in path.read_text(encoding="utf-8") for path in places), f"no {test} in {file}"
