"""From estimates to costs: the steady one of two estimators, made true on the whole by the other. Torch-free.

For a component with changes Δ_r of its output rows r and gradients G_r of one sequence's probe, the second-order
change can be estimated by the square of the sum, A = (Σ_r ⟨G_r, Δ_r⟩)², or the sum of the squares, B = Σ_r ⟨G_r, Δ_r⟩².
A is unbiased, and as noisy as the square of one normal number: 64 sequences leave 18 %. B averages over rows and is
far steadier, but leaves out what rows do together. Their ratio is much the same for all options of a component, and
similar between components, so it is estimated once for a component and shrunk to the mean of all:

    cost = line + κ_c B,   ln κ_c = μ + τ² / (τ² + s_c²) · (ln(A_c / B_c) − μ)

with s_c the standard error of ln(A_c / B_c), μ the mean over components, and τ² what is left of their variance without
sampling noise (the shrinkage of James and Stein, 1961, with an empirical prior as in Efron and Morris, 1973).
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Estimate

Array = NDArray[np.float64]


def steady_changes(estimates: Mapping[str, Estimate]) -> dict[str, Array]:
    """`[sequence, option]` by component: what to sum up and to compare; measured changes stay what they are."""
    logs, errors = {}, {}
    for name, estimate in estimates.items():
        if estimate.apart is not None and estimate.line is not None:
            found = compare_squares(estimate.changes - estimate.line, estimate.apart - estimate.line)
            if found is not None:
                logs[name], errors[name] = found
    ratios = shrink_ratios(logs, errors)
    return {
        name: estimate.changes
        if estimate.apart is None or estimate.line is None
        else estimate.line + ratios.get(name, 1.0) * (estimate.apart - estimate.line)
        for name, estimate in estimates.items()
    }


def compare_squares(together: Array, apart: Array) -> tuple[float, float] | None:
    """ln(A / B) of one component as a mean over options, and its standard error over sequences; None without changes.

    Both are `[sequence, option]`.
    """
    a, b = together.mean(axis=0), apart.mean(axis=0)
    known = (a > 0) & (b > 0)
    if not known.any():
        return None
    influence = (together[:, known] / a[known] - apart[:, known] / b[known]).mean(axis=1)
    count = len(influence)
    error = float(influence.std(ddof=1)) / count**0.5 if count > 1 else np.inf
    return float(np.log(a[known] / b[known]).mean()), error


def shrink_ratios(logs: Mapping[str, float], errors: Mapping[str, float]) -> dict[str, float]:
    """exp of the logarithms, each drawn to their mean by as much as its standard error makes it doubtful."""
    values, squares = np.array(list(logs.values())), np.square(list(errors.values()))
    if len(values) > 1:
        noise = float(squares.mean())
        spread = max(0.0, float(values.var(ddof=1)) - noise) if np.isfinite(noise) else 0.0
        trust = np.divide(spread, spread + squares, out=np.zeros_like(squares), where=spread > 0)
        values = values.mean() + trust * (values - values.mean())
    return dict(zip(logs, np.exp(values).tolist(), strict=True))
