"""Kriging against the conditional distribution written out, and how often its bounds are exceeded."""

import numpy as np
import pytest
from scipy.stats import binom, t

from compressor.search.kriging import FEWEST, SHARES, Array, Trials, fit, krige


def draw_trials(rng: np.random.Generator, count: int, treatments: int = 10) -> Trials:
    members = (rng.random((count, treatments)) < 0.4).astype(float)
    members[np.arange(count), rng.integers(treatments, size=count)] = 1.0
    return Trials(members, rng.normal(size=count))


def draw_values(rng: np.random.Generator, trials: Trials, share: float) -> Array:
    """From the model itself: β = (1, 2), σ = 0.5."""
    effects = rng.normal(size=trials.members.shape[1])
    special = trials.members @ effects / np.sqrt(trials.members.sum(axis=1))
    noise = rng.normal(size=len(special))
    return 1 + 2 * trials.predicted + 0.5 * (share**0.5 * special + (1 - share) ** 0.5 * noise)


def split(trials: Trials, count: int) -> tuple[Trials, Trials]:
    return tuple(Trials(trials.members[part], trials.predicted[part]) for part in (slice(count), slice(count, None)))  # type: ignore[return-value]


@pytest.mark.parametrize("share", [0.0, 0.6, 0.9])
def test_predictions_are_those_of_the_normal_equations(share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best linear unbiased prediction, by an explicit inverse."""
    rng = np.random.default_rng(1)
    known, new = split(draw_trials(rng, 20), 14)
    values = draw_values(rng, known, 0.5)
    monkeypatch.setattr("compressor.search.kriging.SHARES", (share,))
    found = krige(known, values, new)
    assert found is not None
    covariance = share * known.covary(known) + (1 - share) * np.eye(14)
    inverse, cross = np.linalg.inv(covariance), share * known.covary(new)
    design, others = known.trend, new.trend
    normal = np.linalg.inv(design.T @ inverse @ design)
    slopes = normal @ design.T @ inverse @ values
    rest = values - design @ slopes
    variance = rest @ inverse @ rest / 12
    lack = others.T - design.T @ inverse @ cross
    spread = 1 - np.diag(cross.T @ inverse @ cross) + np.diag(lack.T @ normal @ lack)
    assert found[0] == pytest.approx(others @ slopes + cross.T @ inverse @ rest)
    assert found[1] == pytest.approx(np.sqrt(variance * spread))
    assert found[2] == 12


def test_the_restricted_likelihood_is_that_of_contrasts() -> None:
    """Of values projected on what the trend leaves, σ² put in: it may differ by one constant for all ρ."""
    rng = np.random.default_rng(2)
    known = draw_trials(rng, 12)
    values = draw_values(rng, known, 0.9)
    contrasts = np.linalg.svd(known.trend.T)[2][2:]
    differences = []
    for share in SHARES:
        covariance = contrasts @ (share * known.covary(known) + (1 - share) * np.eye(12)) @ contrasts.T
        projected = contrasts @ values
        variance = projected @ np.linalg.solve(covariance, projected) / 10
        likelihood = -(10 * np.log(variance) + np.linalg.slogdet(covariance)[1]) / 2
        differences.append(fit(known, values, share).likelihood - likelihood)
    assert np.ptp(differences) == pytest.approx(0, abs=1e-9)


def test_bounds_are_exceeded_as_often_as_they_say() -> None:
    exceeded, bounds = 0, 0
    for seed in range(150):
        rng = np.random.default_rng(seed)
        trials = draw_trials(rng, 44)
        values = draw_values(rng, trials, (0.0, 0.5, 0.9)[seed % 3])
        known, new = split(trials, 40)
        found = krige(known, values[:40], new)
        assert found is not None
        means, errors, freedom = found
        exceeded += int((values[40:] > means + t.ppf(0.95, freedom) * errors).sum())
        bounds += 4
    assert binom.ppf(0.0005, bounds, 0.05) <= exceeded <= binom.ppf(0.9995, bounds, 0.07)


def test_treatments_in_common_say_more_than_the_trend() -> None:
    rng = np.random.default_rng(3)
    trials = draw_trials(rng, 60)
    values = draw_values(rng, trials, 1.0)
    known, new = split(trials, 50)
    found = krige(known, values[:50], new)
    assert found is not None
    slopes = np.polyfit(known.predicted, values[:50], 1)
    by_trend = values[50:] - np.polyval(slopes, new.predicted)
    assert np.square(values[50:] - found[0]).mean() < 0.2 * np.square(by_trend).mean()


def test_too_little_is_said_to_be_too_little() -> None:
    rng = np.random.default_rng(4)
    trials = draw_trials(rng, FEWEST + 1)
    few, one = split(trials, FEWEST - 1)
    assert krige(few, rng.normal(size=FEWEST - 1), one) is None
    flat = Trials(trials.members, 3 + 1e-16 * np.arange(FEWEST + 1))
    assert krige(flat, rng.normal(size=FEWEST + 1), one) is None


def test_a_perfect_trend_is_followed_exactly() -> None:
    trials = draw_trials(np.random.default_rng(5), 12)
    known, new = split(trials, 10)
    found = krige(known, 3 - known.predicted, new)
    assert found is not None
    assert found[0] == pytest.approx(3 - new.predicted) and found[1].max() < 1e-6
