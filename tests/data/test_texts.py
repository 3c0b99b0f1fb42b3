"""Prefixes and windows: reproducible, disjoint, and every mistake in one line."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.contracts import TextWindows, TrainingTexts
from compressor.data import texts
from compressor.data.texts import (
    cut_windows,
    encode_text,
    load_text,
    make_prefixes,
    make_training_texts,
    make_windows,
)
from compressor.errors import ConfigError, DataError
from compressor.models import Model, load_model
from compressor.settings import DataSettings, ModelSettings

STORY = "once upon a time there was a little fox who liked to read . he read all day and all night . " * 60


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load_model(ModelSettings())


def test_sampling_leaves_the_callers_random_state_alone(tiny: Model) -> None:
    before = torch.random.get_rng_state()
    make_prefixes(tiny, DataSettings(prefixes=3), None)
    assert torch.equal(before, torch.random.get_rng_state())


def test_search_and_proof_prefixes_are_disjoint(tiny: Model) -> None:
    settings = DataSettings(source="text", prefixes=6, proof_prefixes=4, prefix_tokens=8, continuation_tokens=8)
    text = " ".join(f"{word} {index}" for index, word in enumerate(STORY.split()))
    search, proof = make_prefixes(tiny, settings, text)
    assert (search.shape, proof.shape) == ((6, 8), (4, 8))
    rows = {tuple(row) for row in torch.cat([search, proof]).tolist()}
    assert len(rows) == 10
    ids = encode_text(tiny, text).tolist()
    stretches = {tuple(ids[i : i + 8]) for i in range(len(ids))}
    assert rows <= stretches


def test_a_tokenizer_that_adds_bos_gets_it_in_every_prefix(trained_folder: Path) -> None:
    model = load_model(ModelSettings(path=str(trained_folder)))
    settings = DataSettings(source="text", prefixes=5, prefix_tokens=8, continuation_tokens=8)
    search, _ = make_prefixes(model, settings, STORY)
    assert search.shape == (5, 8)
    assert ((search[:, 0] == model.bos).all().item()) == model.adds_bos


@given(
    length=st.integers(2, 60),
    window=st.integers(2, 20),
    data=st.data(),
)
def test_windows_score_every_token_once(length: int, window: int, data: st.DataObject) -> None:
    window = min(window, length)
    stride = data.draw(st.integers(1, window))
    ids = torch.arange(1, length + 1)
    windows = cut_windows(ids, window, stride, "text")
    scored = windows.tokens[:, 1:][windows.counted].tolist()
    if stride < window:
        assert scored == list(range(2, length + 1))
    else:  # windows that do not overlap cannot score their own first token
        assert set(range(2, length + 1)) - set(scored) == {1 + s for s in range(window, length, stride)}
        assert len(scored) == len(set(scored))


def test_perplexity_text_is_the_runs_own_or_the_metrics_or_sampled(tiny: Model, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text(STORY)
    settings = DataSettings(source="text", path="mine.txt")
    assert make_windows(tiny, TextWindows(window=64), settings, STORY).source == "mine.txt"
    assert make_windows(tiny, TextWindows(path=str(other), window=64), settings, None).source == str(other)
    sampled = make_windows(tiny, TextWindows(tokens=500), DataSettings(), None)
    assert sampled.source == "sequences sampled from the base"
    assert sampled.counted.all()


@pytest.mark.parametrize(("context", "asked", "length"), [(131_072, None, 2048), (131_072, 4096, 4096), (64, None, 64)])
def test_windows_are_short_where_a_context_is_very_long(
    context: int, asked: int | None, length: int, tiny: Model
) -> None:
    """One window of 131,072 tokens has no interval, and takes gigabytes for each copy of its logits."""
    long = replace(tiny, context=context)
    windows = make_windows(long, TextWindows(window=asked), DataSettings(source="text", path="mine.txt"), STORY * 4)
    assert windows.tokens.shape[1] == length


def test_text_too_short_says_how_much_there_is(tiny: Model) -> None:
    with pytest.raises(DataError, match=r"holds \d+ tokens, \d+ stretches of 96 .*; 128 are needed"):
        make_prefixes(tiny, DataSettings(source="text"), STORY[:2000])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prefixes": 0}, "`data.prefixes` must be at least 1, got 0"),
        ({"proof_prefixes": 0}, "`data.proof_prefixes` must be at least 1, got 0"),
        ({"prefix_tokens": 0}, "`data.prefix_tokens` must be at least 1, got 0"),
        ({"continuation_tokens": 481}, "must be at most the model's context of 512, got 513"),
    ],
)
def test_bad_lengths(tiny: Model, changes: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_prefixes(tiny, DataSettings(**changes), None)


def test_a_data_set_of_the_hub_is_read_by_datasets(tmp_path: Path) -> None:
    """The real loader on a local folder: nothing is downloaded here."""
    pytest.importorskip("datasets", reason="the optional extra `data` is not installed")
    (tmp_path / "train.txt").write_text("a first line\na second line\n")
    settings = DataSettings(source="hf", name=str(tmp_path), split="train")
    loaded = load_text(settings)
    assert loaded is not None and loaded.content == "a first line\na second line"
    with pytest.raises(DataError, match=r"cannot load data set .*; check its name and split"):
        load_text(DataSettings(source="hf", name=str(tmp_path), split="nowhere"))


@pytest.mark.slow
def test_a_data_set_that_is_not_there_is_one_line() -> None:
    """Without a network the hub's client tries for some twenty seconds."""
    pytest.importorskip("datasets", reason="the optional extra `data` is not installed")
    with pytest.raises(DataError, match="cannot load data set `no/such`"):
        load_text(DataSettings(source="hf", name="no/such"))


# Texts for training -----------------------------------------------------------------------------------------------


def write_data_set(folder: Path, rows: int, column: str = "text") -> str:
    """A local data set in place of one of the hub: the same loader reads both."""
    folder.mkdir()
    lines = [json.dumps({"id": number, column: f"Tom has {number} dogs and a cat."}) for number in range(rows)]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return str(folder)


def test_a_data_set_is_read_as_far_as_it_is_needed(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets", reason="the optional extra `data` is not installed")
    name = write_data_set(tmp_path / "set", 300)
    read: list[str] = []
    monkeypatch.setattr(texts, "ROWS_AT_ONCE", 10)
    encode = texts.encode_text
    monkeypatch.setattr(texts, "encode_text", lambda model, text: (read.append(text), encode(model, text))[1])
    found = make_training_texts(tiny, TrainingTexts(8, 16, dataset=name), seed=0, key="`recovery.tokens`")
    assert found.shape == (8, 16)
    lines = "\n".join(read).splitlines()
    assert lines == [f"Tom has {number} dogs and a cat." for number in range(len(lines))]
    assert 8 * 16 <= sum(len(encode(tiny, text)) for text in read) < 8 * 16 + len(encode(tiny, read[-1]))
    whole = torch.cat([encode(tiny, text) for text in read])[: 8 * 16].view(8, 16)
    assert sorted(found.tolist()) == sorted(whole.tolist()) and found.tolist() != whole.tolist()
    assert torch.equal(
        make_training_texts(tiny, TrainingTexts(8, 16, dataset=name), seed=0, key="`recovery.tokens`"), found
    )
    read.clear()
    everything = make_training_texts(tiny, TrainingTexts(9999, 16, dataset=name), seed=0, key="`recovery.tokens`")
    assert len("\n".join(read).splitlines()) == 300
    assert len(everything) == sum(len(encode(tiny, text)) for text in read) // 16


def test_a_data_set_that_cannot_be_used_is_one_line(tiny: Model, tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="the optional extra `data` is not installed")
    name = write_data_set(tmp_path / "set", 3, "story")
    for request, message in (
        (
            TrainingTexts(2, 8, dataset=name),
            "has the columns id, story, and one must be the text; call that column `text`",
        ),
        (TrainingTexts(2, 8, dataset=name, split="nowhere"), "cannot load data set `.*`: .*; check its name and split"),
        (TrainingTexts(2, 8, dataset=str(tmp_path)), "cannot load data set|has the columns"),
        (TrainingTexts(1, 500, dataset=write_data_set(tmp_path / "short", 2)), "fewer than a window of 500; give more"),
    ):
        with pytest.raises(DataError, match=message):
            make_training_texts(tiny, request, seed=0, key="`recovery.tokens`")
