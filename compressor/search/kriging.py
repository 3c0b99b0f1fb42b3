"""Predicts values of trials from those of others that have treatments in common with them. Torch-free.

With x(p) what was predicted of a plan p beforehand, its value is taken to be

    y(p) = β₀ + β₁ x(p) + g(p) + e(p)

where g is a Gaussian process: what is special about a treatment shows in every plan that has it,

    cov(g(p), g(q)) = σ² ρ |p ∩ q| / √(|p| |q|),    cov(e(p), e(q)) = σ² (1 − ρ) [p = q]

β is estimated by generalised least squares, σ² from what that leaves, ρ by the restricted likelihood. The error of a
new value divided by its standard error, which includes that of β, is Student's t with n − 2 degrees of freedom.

Sources: universal kriging, Matheron, 1969; restricted likelihood, Patterson and Thompson, 1971; Gaussian processes
with a linear mean, Rasmussen and Williams, 2006, section 2.7.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular

Array = NDArray[np.float64]
SHARES = (0.0, 0.3, 0.6, 0.8, 0.9, 0.97, 0.99)
"""Values of ρ that are tried."""
FEWEST = 6
"""Known trials, below which nothing is predicted."""
FLAT = 1e-9
"""Predictions that differ by no more have no trend."""
SMALLEST = 1e-24
"""σ² where the known values leave nothing unexplained."""


@dataclass(frozen=True)
class Trials:
    """`members` `[trial, treatment]` is 1 where a plan has a treatment, else 0; `predicted` `[trial]` is x."""

    members: Array
    predicted: Array

    def covary(self, other: "Trials") -> Array:
        """`[own trial, other trial]`: |p ∩ q| / √(|p| |q|)."""
        sizes = np.sqrt(np.outer(self.members.sum(axis=1), other.members.sum(axis=1)))
        common: Array = self.members @ other.members.T / np.maximum(sizes, 1.0)
        return common

    @property
    def trend(self) -> Array:
        """`[trial, 2]`: what β multiplies."""
        return np.stack([np.ones_like(self.predicted), self.predicted], axis=1)


@dataclass(frozen=True)
class Fit:
    """What is known for one ρ: the Cholesky factor of the covariance over σ², and trend and residuals under it."""

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
    """Generalised least squares of `values` `[trial]` with one ρ."""
    factor: Array = cholesky(share * known.covary(known) + (1 - share) * np.eye(len(values)), lower=True)
    trend, target = (solve_triangular(factor, side, lower=True) for side in (known.trend, values))
    slopes = np.linalg.solve(trend.T @ trend, trend.T @ target)
    return Fit(share, factor, trend, slopes, target - trend @ slopes)


def krige(known: Trials, values: Array, new: Trials) -> tuple[Array, Array, int] | None:
    """Means and standard errors `[trial]` of `new` ones, and degrees of freedom; None where too little is known."""
    if len(values) < FEWEST or np.ptp(known.predicted) <= FLAT:
        return None
    best = max((fit(known, values, share) for share in SHARES), key=lambda found: found.likelihood)
    weights = solve_triangular(best.factor, best.share * known.covary(new), lower=True)
    means = new.trend @ best.slopes + weights.T @ best.residuals
    untold = new.trend.T - best.trend.T @ weights
    spread = 1 - (weights**2).sum(axis=0) + (untold * np.linalg.solve(best.trend.T @ best.trend, untold)).sum(axis=0)
    return means, np.sqrt(best.variance * np.maximum(spread, 0.0)), best.freedom
