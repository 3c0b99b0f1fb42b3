"""Metrics against their formulas in float64, and the facts that tie them together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.contracts import Metric, Reads
from compressor.errors import ConfigError, PluginError
from compressor.readout import Readout
from compressor.sweep import read_statistics
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.perplexity import Perplexity
from compressor_plugins.metrics.sdtm import Sdtm


def make_logits(seed: int, sequences: int, positions: int, vocabulary: int, scale: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sequences, positions, vocabulary, generator=generator) * scale


def make_pair(seed: int, noise: float = 1.0, shape: tuple[int, int, int] = (5, 12, 17)) -> tuple[Readout, Readout]:
    """A candidate near a base, and the base, on the base's own greedy tokens."""
    base = make_logits(seed, *shape)
    candidate = base + noise * make_logits(seed + 1, *shape, scale=1.0)
    tokens = base.argmax(-1)
    return Readout(lambda: candidate, tokens), Readout(lambda: base, tokens)


def score(metric: Metric, candidate: Readout, base: Readout) -> np.ndarray:
    return read_statistics(metric, candidate, base).numpy()


def test_fdtm_counts_leading_agreement_token_by_token() -> None:
    candidate, base = make_pair(0, noise=2.0)
    expected = []
    for logits, tokens in zip(candidate.logits.tolist(), candidate.tokens.tolist(), strict=True):
        run = 0
        for row, token in zip(logits, tokens, strict=True):
            if row.index(max(row)) != token:
                break
            run += 1
        expected.append(run)
    assert score(Fdtm(), candidate, base)[:, 0].tolist() == expected
    assert len(set(expected)) > 1


def test_kl_and_divergent_perplexity_match_float64_loops() -> None:
    candidate, base = make_pair(3)
    p, q = (np.array(r.logits.tolist(), dtype=np.float64) for r in (base, candidate))
    p, q = (np.exp(z - np.log(np.exp(z).sum(-1, keepdims=True))) for z in (p, q))
    kl = (p * np.log(p / q)).sum(-1).mean(-1)
    assert score(Kl(), candidate, base)[:, 0] == pytest.approx(kl, rel=1e-5)
    tokens = candidate.tokens.numpy()[..., None]
    nats = -np.log(np.take_along_axis(q, tokens, -1))[..., 0]
    assert score(DivergentPerplexity(), candidate, base)[:, 0] == pytest.approx(nats.mean(-1), rel=1e-5)
    value = DivergentPerplexity().aggregate(score(DivergentPerplexity(), candidate, base))
    assert value == pytest.approx(math.exp(nats.mean()), rel=1e-5)


def test_perplexity_counts_only_marked_positions() -> None:
    logits = make_logits(5, 3, 8, 11)
    tokens = torch.randint(11, (3, 8), generator=torch.Generator().manual_seed(1))
    counted = torch.rand(3, 8, generator=torch.Generator().manual_seed(2)) > 0.4
    readout = Readout(lambda: logits, tokens, counted)
    nats = -logits.double().log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
    statistics = score(Perplexity(), readout, readout)
    assert statistics[:, 1].tolist() == counted.sum(-1).tolist()
    assert Perplexity().aggregate(statistics) == pytest.approx(math.exp(nats[counted].mean().item()), rel=1e-6)


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10**6), noise=st.floats(0.0, 20.0))
def test_facts_that_hold_for_any_candidate(seed: int, noise: float) -> None:
    candidate, base = make_pair(seed, noise)
    length = candidate.tokens.shape[1]
    fdt, sdt = score(Fdtm(), candidate, base)[:, 0], score(Sdtm(), candidate, base)[:, 0]
    nats = score(DivergentPerplexity(), candidate, base)[:, 0]
    kl = score(Kl(), candidate, base)[:, 0]
    assert (fdt + sdt <= length).all()
    assert ((fdt == length) == (sdt == 0)).all()
    assert (sdt * math.log(2) <= length * nats + 1e-6).all()
    assert (kl >= 0).all()


def test_the_base_itself_is_perfect() -> None:
    candidate, base = make_pair(7, noise=0.0)
    assert (score(Fdtm(), candidate, base) == candidate.tokens.shape[1]).all()
    assert (score(Sdtm(), candidate, base) == 0).all()
    assert (score(Kl(), candidate, base) == 0).all()


def test_ties_break_to_the_lowest_id() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[0, 1, 2:] = 1.0
    tokens = torch.tensor([[0, 2, 0]])
    readout = Readout(lambda: logits, tokens)
    assert score(Fdtm(), readout, readout)[0, 0] == 3


def test_a_token_that_the_base_rules_out_adds_nothing() -> None:
    base = torch.tensor([[[0.0, 1.0, -math.inf]]])
    readout = Readout(lambda: base, torch.tensor([[1]]))
    assert score(Kl(), readout, readout)[0, 0] == 0.0


def test_undeclared_readings_are_refused() -> None:
    class Sneaky(Fdtm):
        name = "sneaky"
        reads = Reads.PREDICTED

        def statistics(self, candidate: Readout, base: Readout) -> torch.Tensor:
            return candidate.log_probabilities.sum((-1, -2))[:, None]

    candidate, base = make_pair(1)
    with pytest.raises(PluginError, match="`sneaky` reads `log_probabilities` without declaring it"):
        read_statistics(Sneaky(), candidate, base)


@pytest.mark.parametrize("reads", [Reads.PREDICTED, Reads.REFERENCE])
def test_light_readings_never_make_a_softmax(reads: Reads) -> None:
    candidate, base = make_pair(1)
    metric = Fdtm() if reads is Reads.PREDICTED else DivergentPerplexity()
    read_statistics(metric, candidate, base)
    assert "log_probabilities" not in candidate.__dict__


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "`metric.perplexity.window` must be at least 2, got 1"),
        ({"stride": 0}, "`metric.perplexity.stride` must be at least 1, got 0"),
        ({"window": 8, "stride": 9}, "`metric.perplexity.stride` must be at most the window of 8, got 9"),
        ({"tokens": -1}, "`metric.perplexity.tokens` must be at least 0, got -1"),
    ],
)
def test_window_options_are_checked(options: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Perplexity(**options).text()
