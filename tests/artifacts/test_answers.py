"""Answers of a search are found again after an interruption, whatever happened to single blocks."""

from pathlib import Path

import numpy as np

from compressor.artifacts.answers import BLOCK_SECONDS, Answers


def test_answers_are_found_again(tmp_path: Path) -> None:
    stored = Answers(tmp_path)
    stored.add("a", {"kl": np.array([[1.0], [2.0]])}, {"seconds": 3})
    stored.save()
    stored.add("b", {"with|separator": np.array([5])})
    stored.save()
    again = Answers(tmp_path)
    assert again.load() == 2
    first, second = again.find("a"), again.find("b")
    assert first is not None and second is not None and again.find("c") is None
    assert first.facts == {"seconds": 3} and np.array_equal(first.arrays["kl"], [[1.0], [2.0]])
    assert np.array_equal(second.arrays["with|separator"], [5])


def test_a_damaged_block_costs_only_its_own_answers(tmp_path: Path) -> None:
    stored = Answers(tmp_path)
    for name in ("a", "b", "c"):
        stored.add(name, {"x": np.zeros(3)})
        stored.save()
    (tmp_path / "000001.safetensors").write_bytes(b"cut")
    again = Answers(tmp_path)
    assert again.load() == 2 and again.find("b") is None
    again.add("b", {"x": np.ones(3)})
    again.save()
    assert Answers(tmp_path).load() == 3


def test_answers_wait_for_their_block_and_then_are_announced(tmp_path: Path) -> None:
    announced: list[int] = []
    stored = Answers(tmp_path, after_block=lambda: announced.append(len(list(tmp_path.iterdir()))))
    stored.add("a", {"x": np.zeros(1)})
    stored.add("b", {"x": np.zeros(1)})
    stored.pause()
    assert not announced and not list(tmp_path.iterdir())
    stored.saved_at -= BLOCK_SECONDS
    stored.pause()
    assert announced == [1] and Answers(tmp_path).load() == 2


def test_without_a_folder_nothing_is_stored(tmp_path: Path) -> None:
    stored = Answers()
    stored.add("a", {"x": np.zeros(1)})
    stored.save()
    assert stored.load() == 0 and stored.find("a") is None


def test_keys_differ_with_their_facts() -> None:
    stored = Answers()
    key = stored.make_key("trial", {"a": 1})
    assert key == stored.make_key("trial", {"a": 1}) != stored.make_key("trial", {"a": 2})
    stored.enter("keep", [])
    assert key != stored.make_key("trial", {"a": 1})
