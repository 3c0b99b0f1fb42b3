"""The reference: what `generate` says, a fixed point of the scoring pass, and cached only where nothing changed."""

import os
from pathlib import Path

import pytest
import safetensors
import torch

from compressor.contracts import Reads
from compressor.data.reference import (
    Reference,
    build_reference,
    cache_folder,
    choose_likeliest,
    generate_again,
    write_reference,
)
from compressor.errors import ModelError, OutputError
from compressor.evaluation.evaluator import Evaluator
from compressor.models import load_model
from compressor.settings import DType, ModelSettings
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from tests.support.families import FAMILIES, each, save_checkpoint
from tests.support.references import generate, random_prefixes
from tests.support.trial_weights import GivenWeights


def test_reference_is_what_generate_says(trained_folder: Path) -> None:
    model = load_model(ModelSettings(path=str(trained_folder)))
    prefixes = random_prefixes(model)
    reference = build_reference(model, prefixes, 24)
    assert torch.equal(reference.tokens, generate(model, prefixes, 24))
    assert reference.noise_floor == 24


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2"])
def test_reference_is_a_fixed_point_of_scoring(tmp_path: Path, family: str, dtype: str) -> None:
    save_checkpoint(family, tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path), dtype=DType(dtype)))
    reference = build_reference(model, random_prefixes(model, count=10), 16, batch=4)
    values = Evaluator(model, reference, {"fdtm": Fdtm(), "kl": Kl()}, GivenWeights()).score_current(["fdtm"])
    assert (values["fdtm"] == 16).all()
    assert reference.noise_floor == 16


def test_low_precision_disagreement_is_mended_and_counted(tmp_path: Path) -> None:
    """In bfloat16 step-by-step generation and scoring round differently at near ties; the reference says how often."""
    save_checkpoint("llama", tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path), dtype=DType.bfloat16))
    real = model.decode
    broken = 0

    def decode(prefixes: torch.Tensor, tokens: int, pick: object) -> torch.Tensor:
        nonlocal broken
        found = real(prefixes, tokens, pick)
        if not broken:
            broken, position = 1, prefixes.shape[1] + 3
            found[0, position] = (found[0, position] + 1) % model.vocabulary
        return found

    model.decode = decode  # type: ignore[method-assign] - a generation that errs once
    prefixes = random_prefixes(model, count=3)
    mended = build_reference(model, prefixes, 12)
    model.decode = real  # type: ignore[method-assign]
    assert mended.mended >= 1
    assert mended.noise_floor == 12
    assert torch.equal(mended.tokens, build_reference(model, prefixes, 12).tokens)


def test_all_prefixes_are_generated_together(tmp_path: Path) -> None:
    """However few sequences are scored at once: a step for all reads the weights once. Mending is done together too."""
    save_checkpoint("llama", tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path), dtype=DType.float32))
    prefixes = random_prefixes(model, count=40)
    wanted = build_reference(model, prefixes, 12, batch=8).tokens
    real, steps, broken = model.decode, 0, [3, 17, 30]

    def decode(prefixes: torch.Tensor, tokens: int, pick: object) -> torch.Tensor:
        nonlocal steps, broken
        steps += tokens
        found = real(prefixes, tokens, pick)
        for row, back in zip(broken, (12, 5, 1), strict=False):
            found[row, -back] = (found[row, -back] + 1) % model.vocabulary
        broken = []
        return found

    model.decode = decode  # type: ignore[method-assign] - a generation that errs once, in three sequences
    found = build_reference(model, prefixes, 12, batch=1)
    assert torch.equal(found.tokens, wanted)
    assert (found.mended, found.noise_floor) == (3, 12)
    assert steps <= 2 * 12


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_sequences_are_generated_again_from_where_each_is_wrong(family: str, tmp_path: Path) -> None:
    model = load_model(ModelSettings(path=str(save_checkpoint(family, tmp_path)), dtype=DType.float32))
    prefixes = random_prefixes(model, count=5)
    tokens = model.decode(prefixes, 12, choose_likeliest)
    starts = torch.tensor([12, 21, 15, 10, 13])
    for row, start in enumerate(starts.tolist()):
        tokens[row, start - 1] = (tokens[row, start - 1] + 1) % model.vocabulary
    found = generate_again(model, tokens, starts)
    for row, start in enumerate(starts.tolist()):
        alone = model.decode(tokens[row : row + 1, :start], tokens.shape[1] - start, choose_likeliest)
        assert torch.equal(found[row : row + 1], alone)


def test_near_ties_are_counted(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    counts = []
    for dtype in ("float32", "bfloat16"):
        model = load_model(ModelSettings(path=str(tmp_path), dtype=DType(dtype)))
        counts.append(build_reference(model, random_prefixes(model, count=16), 16).near_ties)
    assert counts[0] < counts[1]


def test_the_cache_is_used_and_only_where_nothing_changed(tmp_path: Path) -> None:
    for seed in (0, 1):
        save_checkpoint("llama", tmp_path / str(seed), seed=seed)
    models = [load_model(ModelSettings(path=str(tmp_path / str(seed)))) for seed in (0, 1)]
    prefixes, cache = random_prefixes(models[0]), tmp_path / "cache"
    first = build_reference(models[0], prefixes, 8, cache=cache)
    models[0].decode = None  # type: ignore[assignment] - must not be needed again
    assert torch.equal(build_reference(models[0], prefixes, 8, cache=cache).tokens, first.tokens)
    assert len(list(cache.iterdir())) == 1
    build_reference(models[1], prefixes, 8, cache=cache)
    build_reference(models[1], prefixes, 9, cache=cache)
    build_reference(models[1], prefixes[1:], 9, cache=cache)
    assert len(list(cache.iterdir())) == 4
    assert max(path.stat().st_size for path in cache.iterdir()) < 4096


def test_a_damaged_cache_is_rebuilt(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_checkpoint("llama", tmp_path / "model")
    model = load_model(ModelSettings(path=str(tmp_path / "model")))
    first = build_reference(model, random_prefixes(model), 8, cache=tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    again = build_reference(model, random_prefixes(model), 8, cache=tmp_path / "cache")
    assert torch.equal(first.tokens, again.tokens)
    assert "is damaged and is dropped" in caplog.text


def test_reference_file_can_be_checked_by_anybody(tmp_path: Path) -> None:
    tokens = torch.arange(30).reshape(3, 10)
    write_reference(Reference(tokens, prefix_tokens=4, batch=2, near_ties=1), tmp_path / "reference.safetensors")
    with safetensors.safe_open(tmp_path / "reference.safetensors", framework="pt") as file:
        assert torch.equal(file.get_tensor("tokens"), tokens)
        assert file.metadata()["prefix_tokens"] == "4"
    assert [path.name for path in tmp_path.iterdir()] == ["reference.safetensors"]


@pytest.mark.parametrize("family", each(FAMILIES))
def test_the_remembered_distribution_is_the_bases_own(tmp_path: Path, family: str) -> None:
    save_checkpoint(family, tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path)))
    reference = build_reference(model, random_prefixes(model, count=5), 6, batch=4)
    reference.remember_distribution(model)
    for start, batch in reference.batches():
        expected = model.network(batch[:, :-1], use_cache=False).logits[:, -6:].float().log_softmax(-1)
        base = reference.base_readout(start, len(batch)).restricted(Reads.DISTRIBUTION, "test")
        assert torch.allclose(base.log_probabilities, expected, atol=1e-5)


def test_a_distribution_that_was_not_remembered_is_an_error(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path)))
    reference = build_reference(model, random_prefixes(model), 6)
    with pytest.raises(ModelError, match="was not remembered"):
        _ = reference.base_readout(0, 1).logits


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_weights_are_ratios_of_the_two_largest_probabilities(scale: float) -> None:
    """However wide the margins are; a tie counts most, and a position inside of a prefix counts 1."""
    logits = scale * torch.tensor([[[0.0, 2, 5], [3, 1, 1], [0, 4, 4]], [[2, 2, 2], [0, 9, 1], [1, 0, 0]]])
    tokens = torch.cat([torch.zeros(2, 4, dtype=torch.int64), logits.argmax(-1)], dim=1)
    reference = Reference(tokens, prefix_tokens=4, batch=1, logits=logits)
    assert reference.weights is None
    reference.weigh_by_margins()
    ratios = (-scale * torch.tensor([[3.0, 2, 0], [0, 8, 1]])).double().exp()
    assert reference.weights is not None and torch.equal(reference.weights[:, :3], torch.ones(2, 3))
    torch.testing.assert_close(reference.weights[:, 3:], (ratios / ratios.mean()).float())


def test_margins_that_are_all_too_wide_for_their_probabilities_have_weights() -> None:
    logits = torch.tensor([[[0.0, 2000], [3000, 0]]])
    reference = Reference(torch.tensor([[0, 0, 1, 0]]), prefix_tokens=2, batch=1, logits=logits)
    reference.weigh_by_margins()
    assert reference.weights is not None and reference.weights.tolist() == [[1, 2, 0]]


def test_a_reference_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    reference = Reference(torch.arange(30).reshape(3, 10), prefix_tokens=4, batch=2)
    with pytest.raises(OutputError, match=r"cannot write .*; free some space or choose another folder"):
        write_reference(reference, tmp_path / "file" / "reference.safetensors")


def test_a_user_without_a_home_directory_has_no_cache(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("COMPRESSOR_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as where the user is not in the list of users
    assert cache_folder() is None
    assert caplog.messages == ["the user has no home directory, so nothing is cached; set COMPRESSOR_CACHE to a folder"]
