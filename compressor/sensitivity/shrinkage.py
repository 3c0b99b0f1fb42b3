"""From estimates to costs: an estimator with low variance, whose bias is corrected by an unbiased one. Without torch.

Let Δ_r be the changes of a component's output rows r, and G_r the gradients of one sequence's probe. The second-order
change can be estimated by the square of the sum, A = (Σ_r ⟨G_r, Δ_r⟩)², or by the sum of the squares,
B = Σ_r ⟨G_r, Δ_r⟩². A is unbiased, but has the variance of the square of a normal variable: with 64 sequences, its
standard error is 18 %. B averages over rows and varies much less, but ignores interactions between rows. The ratio
A / B is nearly the same for all options of a component, and similar between components. So it is estimated once for
each component, and shrunk towards the mean of all components:

    cost = line + κ_c B,   ln κ_c = μ + τ² / (τ² + s_c²) · (ln(A_c / B_c) − μ)

s_c is the standard error of ln(A_c / B_c), μ the mean over components, and τ² the variance between components without
the sampling noise. This is the shrinkage of James and Stein (1961) with an empirical prior, as in Efron and Morris
(1973). `line` is the first-order change.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from compressor.contracts import Estimate

Array = NDArray[np.float64]


def combine(estimates: Sequence[Estimate], join: Callable[[list[Array]], Array], rows: Array | None = None) -> Estimate:
    """One estimate from several: `changes`, `apart` and `line` are joined, and `rows` are those given.

    A part that one of the estimates does not have is None. The component is reached if it is in one of them.
    """

    def join_parts(name: str) -> Array | None:
        parts = [part for estimate in estimates if (part := getattr(estimate, name)) is not None]
        return join(parts) if len(parts) == len(estimates) else None

    changes = join([estimate.changes for estimate in estimates])
    reached = any(estimate.reached for estimate in estimates)
    return Estimate(changes, rows, reached, join_parts("apart"), join_parts("line"))


def steady_changes(estimates: Mapping[str, Estimate]) -> dict[str, Array]:
    """Component -> costs `[sequence, option]`, to be added up and compared; measured changes stay as they are."""
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
    """ln(A / B) of one component, as a mean over options, and its standard error over sequences.

    `together` is A and `apart` is B, both `[sequence, option]`. None if no option changes anything.
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
    """The ratios, from their logarithms: each is shrunk towards the mean, and more if its standard error is large."""
    values, squares = np.array(list(logs.values())), np.square(list(errors.values()))
    if len(values) > 1:
        noise = float(squares.mean())
        spread = max(0.0, float(values.var(ddof=1)) - noise) if np.isfinite(noise) else 0.0
        trust = np.divide(spread, spread + squares, out=np.zeros_like(squares), where=spread > 0)
        values = values.mean() + trust * (values - values.mean())
    return dict(zip(logs, np.exp(values).tolist(), strict=True))
