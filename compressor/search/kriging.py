"""Kriging: predicts the values of trials from measured trials with common treatments. Torch-free.

Let x(p) be the estimate for a plan p from a backward pass. The model of its value is

    y(p) = β₀ + β₁ x(p) + g(p) + e(p)

where g is a Gaussian process, because the error of the estimate of a treatment occurs in every plan that has it:

    cov(g(p), g(q)) = σ² ρ |p ∩ q| / √(|p| |q|),    cov(e(p), e(q)) = σ² (1 − ρ) [p = q]

β is estimated by generalised least squares, σ² from the residuals, ρ by the restricted likelihood. The error of a new
value divided by its standard error (with that of β) has Student's t distribution with n − 2 degrees of freedom.

Sources: universal kriging, Matheron, 1969; restricted likelihood, Patterson and Thompson, 1971; Gaussian processes
with a linear mean, Rasmussen and Williams, 2006, section 2.7.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

Array = NDArray[np.float64]
SHARES = (0.0, 0.3, 0.6, 0.8, 0.9, 0.97, 0.99)
"""Candidate values of ρ."""
FEWEST = 6
"""The number of measured trials that a prediction needs."""
FLAT = 1e-9
"""If the estimates differ by at most this, there is no trend to fit."""
SMALLEST = 1e-24
"""Lower bound of σ², for values that the trend explains completely."""


@dataclass(frozen=True)
class Trials:
    """`members` `[trial, treatment]` is 1 if a plan has the treatment, else 0; `predicted` `[trial]` is x."""

    members: Array
    predicted: Array

    def covary(self, other: "Trials") -> Array:
        """`[own trial, other trial]`: |p ∩ q| / √(|p| |q|)."""
        sizes = np.sqrt(np.outer(self.members.sum(axis=1), other.members.sum(axis=1)))
        common: Array = self.members @ other.members.T / np.maximum(sizes, 1.0)
        return common

    @property
    def trend(self) -> Array:
        """`[trial, 2]`: the regressors 1 and x."""
        return np.stack([np.ones_like(self.predicted), self.predicted], axis=1)


@dataclass(frozen=True)
class Fit:
    """The fit for one ρ: the Cholesky factor of the covariance / σ², and trend and residuals whitened by it."""

    share: float
    factor: Array
    trend: Array
    slopes: Array
    residuals: Array

    @property
    def freedom(self) -> int:
        return self.residuals.size - self.slopes.size

    @property
    def variance(self) -> float:
        """σ²"""
        return max(float(self.residuals @ self.residuals) / self.freedom, SMALLEST)

    @property
    def likelihood(self) -> float:
        """The restricted log-likelihood, up to a constant."""
        scale = self.freedom * np.log(self.variance) + np.linalg.slogdet(self.trend.T @ self.trend)[1]
        return float(-np.log(np.diag(self.factor)).sum() - scale / 2)


def fit(known: Trials, values: Array, share: float) -> Fit:
    """Generalised least squares of `values` `[trial]` for one ρ (`share`)."""
    factor: Array = cholesky(share * known.covary(known) + (1 - share) * np.eye(len(values)), lower=True)
    trend, target = (solve_triangular(factor, side, lower=True) for side in (known.trend, values))
    slopes = np.linalg.solve(trend.T @ trend, trend.T @ target)
    return Fit(share, factor, trend, slopes, target - trend @ slopes)


def krige(known: Trials, values: Array, new: Trials) -> tuple[Array, Array, int] | None:
    """Means and standard errors `[trial]` of `new` trials, and degrees of freedom; None if too few are known."""
    if len(values) < FEWEST or np.ptp(known.predicted) <= FLAT:
        return None
    best = max((fit(known, values, share) for share in SHARES), key=lambda found: found.likelihood)
    weights = solve_triangular(best.factor, best.share * known.covary(new), lower=True)
    means = new.trend @ best.slopes + weights.T @ best.residuals
    gap = new.trend.T - best.trend.T @ weights
    spread = 1 - (weights**2).sum(axis=0) + (gap * np.linalg.solve(best.trend.T @ best.trend, gap)).sum(axis=0)
    return means, np.sqrt(best.variance * np.maximum(spread, 0.0)), best.freedom
