"""Metrics against their formulas in float64, and the facts that tie them together."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.contracts import Metric, Readout, Reads
from compressor.data.reference import build_reference
from compressor.errors import ConfigError, PluginError
from compressor.evaluation.batches import read_values
from compressor.evaluation.bootstrap import compare_paired, summarize
from compressor.evaluation.evaluator import Evaluator
from compressor.models import load_model
from compressor.sensitivity.margin_law import expected_fdt
from compressor.settings import ModelSettings
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.expected_fdtm import ExpectedFdtm
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.margin_noise import MarginNoise, read_margins
from compressor_plugins.metrics.perplexity import Perplexity
from compressor_plugins.metrics.sdtm import Sdtm
from tests.support.trial_weights import GivenWeights


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
    return read_values(metric, candidate, base).numpy()


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
    values = score(Perplexity(), readout, readout)
    assert values[:, 1].tolist() == counted.sum(-1).tolist()
    assert Perplexity().aggregate(values) == pytest.approx(math.exp(nats[counted].mean().item()), rel=1e-6)


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

        def sequence_values(self, candidate: Readout, base: Readout) -> torch.Tensor:
            return candidate.log_probabilities.sum((-1, -2))[:, None]

    candidate, base = make_pair(1)
    with pytest.raises(PluginError, match="`sneaky` reads `log_probabilities` without declaring it"):
        read_values(Sneaky(), candidate, base)


@pytest.mark.parametrize("reads", [Reads.PREDICTED, Reads.REFERENCE])
def test_light_readings_never_make_a_softmax(reads: Reads) -> None:
    candidate, base = make_pair(1)
    metric = Fdtm() if reads is Reads.PREDICTED else DivergentPerplexity()
    read_values(metric, candidate, base)
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


# Margins ----------------------------------------------------------------------------------------------------------


def test_margin_noise_by_hand() -> None:
    """One sequence, two positions: the first margin falls from 1 to ½, the second rises from 3 to 4."""
    tokens = torch.tensor([[0, 2]])
    base = Readout(torch.tensor([[[5.0, 2.0, 4.0], [0.0, 1.0, 4.0]]]), tokens)
    candidate = Readout(torch.tensor([[[5.0, 9.0, 4.5], [8.0, 2.0, 6.0]]]), tokens)
    ids, margins = base.runners_up(1)
    assert ids.tolist() == [[[2], [1]]] and margins.tolist() == [[[1.0], [3.0]]]
    assert read_margins(candidate, ids).tolist() == [[[0.5], [4.0]]]
    # Weights ∝ 1 / (m + 1) are ⅔ and ⅓; alike for any large closeness.
    assert score(MarginNoise(closeness=1.0), candidate, base)[0, 0] == pytest.approx(0.25 * 2 / 3 + 1 / 3)
    assert score(ExpectedFdtm(closeness=1.0), candidate, base)[0, 1] == pytest.approx(0.25 * 2 / 3 + 1 / 3)
    for alike in (1e9, math.inf):
        assert score(MarginNoise(closeness=alike), candidate, base)[0, 0] == pytest.approx((0.25 + 1.0) / 2)
    assert MarginNoise().aggregate(np.array([[0.5], [1.5], [4.0]])) == pytest.approx(math.sqrt(2))


def test_margins_leave_the_token_out_by_its_id() -> None:
    """Where others tie with the token, they are its runners-up, with a margin of nothing."""
    logits = torch.tensor([[[1.0, 7.0, 7.0, 7.0, -2.0], [3.0, 3.0, 3.0, 3.0, 3.0]]])
    base = Readout(logits, torch.tensor([[2, 4]]))
    ids, margins = base.runners_up(4)
    assert [sorted(row) for row in ids[0].tolist()] == [[0, 1, 3, 4], [0, 1, 2, 3]]
    assert margins.tolist() == [[[0.0, 0.0, 6.0, 9.0], [0.0, 0.0, 0.0, 0.0]]]
    assert ids[0, 0, 2:].tolist() == [0, 4]
    assert score(MarginNoise(), base, base).tolist() == [[0.0]]
    assert ExpectedFdtm().aggregate(score(ExpectedFdtm(), base, base)) == 2.0


@pytest.mark.parametrize("closeness", [0.25, 3.0])
def test_both_models_are_read_at_the_bases_runners_up(closeness: float) -> None:
    """The candidate's own runner-up may be another: the statistic of float64 loops over the base's ids."""
    candidate, base = make_pair(11, noise=3.0)
    expected, others = [], 0
    for z, moved, tokens in zip(base.logits.tolist(), candidate.logits.tolist(), base.tokens.tolist(), strict=True):
        squares, weights = [], []
        for row, said, token in zip(z, moved, tokens, strict=True):
            runner = max((i for i in range(len(row)) if i != token), key=row.__getitem__)
            others += runner != max((i for i in range(len(said)) if i != token), key=said.__getitem__)
            margin = row[token] - row[runner]
            weights.append(1 / (margin + closeness))
            squares.append(weights[-1] * (said[token] - said[runner] - margin) ** 2)
        expected.append(sum(squares) / sum(weights))
    assert others
    assert score(MarginNoise(closeness=closeness), candidate, base)[:, 0] == pytest.approx(expected, rel=1e-5)
    assert score(ExpectedFdtm(closeness=closeness), candidate, base)[:, 1] == pytest.approx(expected, rel=1e-5)


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), scale=st.floats(0, 10))
def test_what_no_softmax_sees_is_no_margin_noise(seed: int, scale: float) -> None:
    """A constant added to all logits of a position."""
    _, base = make_pair(seed)
    shift = make_logits(seed + 2, *base.tokens.shape, 1, scale=scale)
    candidate = Readout(base.logits + shift, base.tokens)
    assert score(MarginNoise(), candidate, base) == pytest.approx(0, abs=1e-9)
    assert ExpectedFdtm().aggregate(score(ExpectedFdtm(), candidate, base)) == pytest.approx(12, rel=1e-4)


@pytest.mark.parametrize("metric", [MarginNoise(), ExpectedFdtm(), ExpectedFdtm(runners=1)])
def test_the_base_itself_makes_no_noise(metric: Metric) -> None:
    candidate, base = make_pair(7, noise=0.0)
    best = 0.0 if isinstance(metric, MarginNoise) else candidate.tokens.shape[1]
    found = summarize(metric, score(metric, candidate, base))
    assert (found.mean, found.low, found.high, found.median) == (best,) * 4


@pytest.mark.parametrize("runners", [1, 2, 8, 100])
def test_expected_fdtm_is_the_law_at_the_noise_of_all_prefixes(runners: int) -> None:
    """From margins sorted by numpy in float64, without a table."""
    candidate, base = make_pair(13, noise=0.7, shape=(20, 12, 17))
    logits = base.logits.double().numpy()
    margins = np.sort(logits.max(-1, keepdims=True) - logits, axis=-1)[..., 1 : runners + 1]
    noise = float(MarginNoise().aggregate(score(MarginNoise(), candidate, base)))
    expected = expected_fdt(torch.from_numpy(margins), noise).mean().item()
    metric = ExpectedFdtm(runners=runners)
    values = score(metric, candidate, base)
    assert metric.aggregate(values) == pytest.approx(expected, rel=2e-3)
    single = [float(metric.aggregate(row[None])) for row in values]
    law = [expected_fdt(torch.from_numpy(m), math.sqrt(row[1])).item() for m, row in zip(margins, values, strict=True)]
    assert single == pytest.approx(law, rel=2e-3)
    assert values[:, 0] == pytest.approx(single, rel=1e-9)


@pytest.mark.parametrize("metric", [MarginNoise(), ExpectedFdtm()])
def test_intervals_hold_the_value(metric: Metric) -> None:
    values = score(metric, *make_pair(1, noise=0.5, shape=(40, 12, 17)))
    found = summarize(metric, values)
    assert np.isfinite(list(found.to_json().values())).all()
    assert found.low < found.mean < found.high and found.min <= found.median <= found.max
    worse = score(metric, *make_pair(1, noise=2.0, shape=(40, 12, 17)))
    difference, low, high = compare_paired(metric, worse, values)
    assert low < difference < high and metric.better.sign * difference < 0 < low * high


def test_a_vocabulary_with_fewer_tokens_than_runners_up() -> None:
    candidate, base = make_pair(3, noise=0.5, shape=(4, 9, 3))
    assert base.runners_up(8)[0].shape == (4, 9, 2)
    wide, narrow = (score(ExpectedFdtm(runners=runners), candidate, base) for runners in (8, 2))
    assert np.array_equal(wide, narrow)
    assert 0 < ExpectedFdtm().aggregate(wide) < 9


@pytest.mark.parametrize("runners", [0, -3])
def test_runners_are_checked(runners: int) -> None:
    message = f"`metric.expected_fdtm.runners` must be at least 1, got {runners}; give for example 8"
    with pytest.raises(ConfigError) as raised:
        ExpectedFdtm(runners=runners).check_options()
    assert str(raised.value) == message


@pytest.mark.parametrize(
    "metric", [MarginNoise(closeness=0.0), MarginNoise(closeness=1e-300), ExpectedFdtm(closeness=-1.0)]
)
def test_closeness_is_checked(metric: Metric) -> None:
    with pytest.raises(ConfigError, match=r"`metric\.\w+\.closeness` must be finite and at least 1e-06, got "):
        metric.check_options()


def test_margins_cost_no_forward_pass_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """One forward pass a batch for all metrics; the base's margins and their tables are found once for all trials."""
    model = load_model(ModelSettings())
    prefixes = torch.randint(3, model.vocabulary, (6, 8), generator=torch.Generator().manual_seed(0))
    reference = build_reference(model, prefixes, 8, batch=4)
    reference.remember_distribution(model)
    metrics: dict[str, Metric] = {"fdtm": Fdtm(), "margin_noise": MarginNoise(), "expected_fdtm": ExpectedFdtm()}
    evaluator = Evaluator(model, reference, metrics, GivenWeights())
    calls: list[str] = []
    whole, head = model.logits, reference.head
    assert head is not None
    monkeypatch.setattr(model, "logits", lambda *given: calls.append("forward") or whole(*given))
    reference.head = lambda hidden: calls.append("head") or head(hidden)  # type: ignore[assignment]
    first = evaluator.score_current()
    assert calls.count("forward") == 2
    assert calls.count("head") == 2
    assert (first["fdtm"] == 8).all() and (first["margin_noise"] == 0).all()
    calls.clear()
    evaluator.score_current()
    assert calls == ["forward", "forward"]
