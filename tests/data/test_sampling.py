"""Sequences that a model writes by chance follow its distribution, wherever they are drawn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compressor.data import sampling
from compressor.data.sampling import draw_on_device, draw_on_host, sample_sequences
from compressor.models import Model, load_model
from compressor.settings import ModelSettings


@pytest.fixture(scope="module")
def loaded() -> Model:
    return load_model(ModelSettings())


@pytest.fixture(params=["host", "device"])
def tiny(request: pytest.FixtureRequest, loaded: Model, monkeypatch: pytest.MonkeyPatch) -> Model:
    """The embedded model, sampled in both ways."""
    if request.param == "device":
        monkeypatch.setattr(sampling, "SMALL_VOCABULARY", 0)
    return loaded


def test_samples_are_the_same_for_one_seed_whatever_their_number(tiny: Model) -> None:
    many = sample_sequences(tiny, 70, 12, seed=3)
    few = sample_sequences(tiny, 5, 12, seed=3)
    assert torch.equal(many[:5], few)
    assert not torch.equal(few, sample_sequences(tiny, 5, 12, seed=4))
    assert (many[:, 0] == tiny.bos).all()
    assert len({tuple(row) for row in many.tolist()}) > 60  # short stories may begin alike


def test_samples_hold_no_special_tokens_after_the_first(tiny: Model) -> None:
    special = torch.tensor(tiny.tokenizer.all_special_ids)
    assert not torch.isin(sample_sequences(tiny, 64, 24, seed=0)[:, 1:], special).any()


def test_sampled_tokens_follow_the_models_distribution(tiny: Model) -> None:
    """The first token after BOS over many samples, against the model's own probabilities."""
    samples = sample_sequences(tiny, 1024, 2, seed=0)[:, 1]
    probability = tiny.logits(torch.tensor([[tiny.bos]]), 1)[0, 0].double().softmax(-1)
    probability[torch.tensor(tiny.tokenizer.all_special_ids)] = 0
    probability /= probability.sum()
    top = probability.topk(3)
    for share, token in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        seen = (samples == token).double().mean().item()
        assert abs(seen - share) < 4 * (share * (1 - share) / 1024) ** 0.5


@given(
    st.lists(st.floats(-30, 30), min_size=3, max_size=40),
    st.sets(st.integers(0, 39), max_size=5),
    st.integers(0, 2**31),
)
def test_tokens_are_drawn_by_the_inverse_of_the_distribution(logits: list[float], chosen: set[int], seed: int) -> None:
    special = sorted(token for token in chosen if token < len(logits) - 1)
    drawn = draw_on_device(torch.tensor([logits]), torch.tensor(special, dtype=torch.int64), seeded(seed))
    number = float(torch.rand(1, 1, dtype=torch.float64, generator=seeded(seed)))
    weights = [0.0 if token in special else math.exp(z - max(logits)) for token, z in enumerate(logits)]
    below = sum(weights[: int(drawn)]) / sum(weights)
    assert below <= number + 1e-6 and below + weights[int(drawn)] / sum(weights) >= number - 1e-6
    assert int(drawn) not in special


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_the_smallest_and_the_largest_number_give_a_token(number: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Special tokens at both ends are not drawn, nor what is beyond the vocabulary."""
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: torch.full(shape, number, dtype=torch.float64))
    logits = torch.tensor([[0.0, 1.0, -1e4, 2.0, 9.0]])
    drawn = draw_on_device(logits, torch.tensor([0, 4]), seeded(0))
    assert drawn.tolist() == [1 if number == 0 else 3]


def test_both_ways_draw_by_the_same_distribution() -> None:
    """Ten thousand draws of each, by the chi-square test of their frequencies."""
    logits = torch.randn(1, 12, generator=seeded(1)).expand(10_000, 12)
    special = torch.tensor([3])
    wanted = 10_000 * logits[0].double().softmax(-1).index_fill(-1, special, 0.0)
    wanted *= 10_000 / wanted.sum()
    for draw in (draw_on_host, draw_on_device):
        counts = draw(logits, special, seeded(2)).bincount(minlength=12)
        assert counts[3] == 0
        kept = wanted > 0
        assert (
            float(((counts - wanted)[kept].square() / wanted[kept]).sum()) < 29.6
        )  # p = 0.001 of 10 degrees of freedom


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
