"""The margin law against closed forms, numerical integration and simulated noise; its tables against itself."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.sensitivity import margin_law
from compressor.sensitivity.margin_law import (
    NOISE_GRID,
    expected_fdt,
    expected_sdt,
    keep_probability,
    read_table,
    tabulate_fdt,
)

NOISES = st.floats(1e-3, 100)


def draw_margins(seed: int, *shape: int, scale: float = 2.0) -> Tensor:
    """Margins `[..., runner]`, the nearest runner-up first; some are exact ties."""
    generator = torch.Generator().manual_seed(seed)
    margins = scale * torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
    ties = torch.rand(shape, generator=generator) < 0.05
    return margins.masked_fill(ties, 0).sort(-1).values


def test_without_noise_every_token_is_kept_even_at_ties() -> None:
    margins = draw_margins(0, 3, 12, 8)
    assert (margins == 0).any()
    assert torch.equal(keep_probability(margins, 0.0), torch.ones(3, 12, dtype=torch.float64))
    assert expected_fdt(margins, 0.0).tolist() == [12.0] * 3
    assert expected_sdt(margins, 0.0).tolist() == [0.0] * 3


@settings(deadline=None)
@given(noise=NOISES)
def test_a_tie_is_kept_half_of_the_time(noise: float) -> None:
    assert keep_probability(torch.zeros(1, 1), noise).item() == pytest.approx(0.5, abs=1e-12)


@pytest.mark.parametrize("runners", [1, 2, 3, 7, 8])
def test_a_tie_of_all_is_decided_by_lot(runners: int) -> None:
    """Of n equal logits with equal noise each is the largest as often as any other."""
    q = keep_probability(torch.zeros(1, runners), 0.7).item()
    assert q == pytest.approx(1 / (runners + 1), abs=2e-5)


@settings(deadline=None)
@given(margin=st.floats(0, 50), noise=NOISES)
def test_one_runner_up_has_a_closed_form(margin: float, noise: float) -> None:
    q = keep_probability(torch.tensor([[margin]], dtype=torch.float64), noise).item()
    assert q == pytest.approx(scipy.stats.norm.cdf(margin / noise), abs=1e-10)


@settings(deadline=None, max_examples=30)
@given(first=st.floats(0, 5), second=st.floats(0, 5), noise=st.floats(0.02, 20))
def test_two_runners_up_are_integrated_numerically(first: float, second: float, noise: float) -> None:
    scale = noise / math.sqrt(2)

    def integrand(u: float) -> float:
        both = scipy.stats.norm.cdf([first / scale + u, second / scale + u]).prod()
        return float(both * math.exp(-u * u / 2) / math.sqrt(2 * math.pi))

    expected, _ = scipy.integrate.quad(integrand, -9, 9, epsabs=1e-10, limit=200)
    q = keep_probability(torch.tensor([[first, second]], dtype=torch.float64), noise).item()
    assert q == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("noise", [0.2, 1.0, 4.0])
def test_eight_runners_up_are_simulated(noise: float) -> None:
    """Logits with independent Gaussian noise: how often does the token stay the largest, and for how long?"""
    positions, draws = 6, 40_000
    margins = draw_margins(3, positions, 8)
    logits = torch.cat([torch.zeros(positions, 1, dtype=torch.float64), -margins], dim=-1)
    generator = torch.Generator().manual_seed(0)
    moved = logits + noise / math.sqrt(2) * torch.randn(draws, positions, 9, dtype=torch.float64, generator=generator)
    kept = (moved.argmax(-1) == 0).double()
    fdt, sdt = kept.cumprod(-1).sum(-1), (1 - kept).sum(-1)
    error = 4.5 / math.sqrt(draws)
    q = keep_probability(margins, noise)
    torch.testing.assert_close(kept.mean(0), q, rtol=0, atol=0.5 * error)
    assert expected_fdt(margins, noise).item() == pytest.approx(fdt.mean().item(), abs=float(fdt.std()) * error)
    assert expected_sdt(margins, noise).item() == pytest.approx(sdt.mean().item(), abs=float(sdt.std()) * error)
    assert q.min() < 0.95


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), noise=NOISES, factor=st.floats(1.01, 10), runners=st.integers(1, 8))
def test_more_noise_diverges_sooner_and_more_often(seed: int, noise: float, factor: float, runners: int) -> None:
    margins = draw_margins(seed, 4, 10, runners)
    less, more = (keep_probability(margins, value) for value in (noise, noise * factor))
    rounding = 1e-12
    assert (more <= less + rounding).all() and (less <= 1).all() and (more >= 0).all()
    clear = (less < 1 - 1e-9) & (margins[..., 0] > 0)
    assert (more < less)[clear].all()
    fdt, sdt = expected_fdt(margins, noise), expected_sdt(margins, noise)
    assert (expected_fdt(margins, noise * factor) <= fdt + rounding).all()
    assert (expected_sdt(margins, noise * factor) >= sdt - rounding).all()
    assert (fdt + sdt <= 10 + rounding).all()
    assert (fdt >= 0).all() and (sdt >= 0).all()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 10**6), noise=NOISES)
def test_more_runners_up_only_make_it_harder(seed: int, noise: float) -> None:
    margins = draw_margins(seed, 3, 5, 8)
    kept = torch.stack([keep_probability(margins[..., :runners], noise) for runners in range(1, 9)])
    assert (kept.diff(dim=0) <= 1e-12).all()


def test_fdt_and_sdt_are_those_of_independent_positions() -> None:
    """The sums written out position by position."""
    margins, noise = draw_margins(5, 7, 3), 0.8
    q = keep_probability(margins, noise).tolist()
    assert expected_fdt(margins, noise).item() == pytest.approx(sum(math.prod(q[: t + 1]) for t in range(7)))
    assert expected_sdt(margins, noise).item() == pytest.approx(sum(1 - value for value in q))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_margins_of_any_precision_are_taken_in_float64(dtype: torch.dtype) -> None:
    margins = draw_margins(2, 4, 3).to(dtype)
    found = keep_probability(margins, 0.5)
    assert found.dtype == torch.float64
    assert torch.equal(found, keep_probability(margins.double(), 0.5))


def test_a_runner_up_that_is_ruled_out_changes_nothing() -> None:
    margins = torch.tensor([[0.4, math.inf]])
    assert torch.equal(keep_probability(margins, 0.5), keep_probability(margins[:, :1], 0.5))


# Tables -----------------------------------------------------------------------------------------------------------


def test_a_table_is_exact_at_its_values() -> None:
    margins = draw_margins(0, 3, 16, 8)
    table = tabulate_fdt(margins).numpy()
    assert table.shape == (3, len(NOISE_GRID))
    for column, noise in enumerate(NOISE_GRID):
        assert np.array_equal(table[:, column], expected_fdt(margins, float(noise)).numpy())
    for row in table:
        assert np.array_equal(read_table(np.tile(row, (len(NOISE_GRID), 1)), NOISE_GRID), row)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    noise=st.floats(math.log(NOISE_GRID[1]), math.log(NOISE_GRID[-1])).map(math.exp),
    positions=st.sampled_from([1, 16, 64]),
    runners=st.integers(1, 8),
    scale=st.floats(0.1, 10),
)
def test_between_its_values_a_table_is_right_to_two_in_a_thousand(
    seed: int, noise: float, positions: int, runners: int, scale: float
) -> None:
    margins = draw_margins(seed, 5, positions, runners, scale=scale)
    found = read_table(tabulate_fdt(margins).numpy(), np.full(5, noise))
    assert found == pytest.approx(expected_fdt(margins, noise).numpy(), rel=2e-3)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), noises=st.tuples(*[st.floats(0, 150)] * 2))
def test_a_read_table_falls_too(seed: int, noises: tuple[float, float]) -> None:
    """Within what the cubic may err inside one step, and never beyond the entries on both sides."""
    table = tabulate_fdt(draw_margins(seed, 1, 16, 8)).numpy()[0]
    low, high = (float(read_table(table, np.float64(noise))) for noise in sorted(noises))
    assert high <= low * (1 + 2e-3)
    for noise, value in zip(sorted(noises), (low, high), strict=True):
        below = table[NOISE_GRID <= noise][-1]
        above = table[min(len(table) - 1, int((NOISE_GRID <= noise).sum()))]
        assert above <= value <= below


def test_a_table_ends_where_its_values_end() -> None:
    table = tabulate_fdt(draw_margins(1, 1, 16, 8)).numpy()[0]
    assert read_table(table, np.float64(0.0)) == table[0] == 16
    assert read_table(table, np.float64(NOISE_GRID[1] / 2)) == pytest.approx((table[0] + table[1]) / 2)
    assert read_table(table, np.float64(1e6)) == table[-1]
    assert read_table(table, np.float64(math.inf)) == table[-1]


def test_tables_of_many_samples_are_read_at_once() -> None:
    tables = tabulate_fdt(draw_margins(1, 6, 16, 8)).numpy().reshape(2, 3, -1)
    noises = np.random.default_rng(0).uniform(0, 3, (2, 3))
    single = [[float(read_table(tables[i, j], noises[i, j])) for j in range(3)] for i in range(2)]
    assert np.array_equal(read_table(tables, noises), single)


def test_the_table_of_the_same_margins_is_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    margins, calls = draw_margins(0, 2, 4, 3), []
    whole = expected_fdt
    monkeypatch.setattr(margin_law, "expected_fdt", lambda *given: calls.append(1) or whole(*given))
    first = tabulate_fdt(margins)
    assert tabulate_fdt(margins) is first and len(calls) == len(NOISE_GRID)
    other = tabulate_fdt(margins.clone())
    assert other is not first and torch.equal(other, first) and len(calls) == 2 * len(NOISE_GRID)


def test_a_table_is_forgotten_with_its_margins() -> None:
    before = len(margin_law._tables)
    margins = draw_margins(0, 2, 4, 3)
    tabulate_fdt(margins)
    assert len(margin_law._tables) == before + 1
    del margins
    assert len(margin_law._tables) == before
