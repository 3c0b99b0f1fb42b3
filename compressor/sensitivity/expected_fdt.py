"""The expected FDT of a plan, with its uncertainty: the margin law applied to predicted σ² of every prefix."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.data.reference import Reference
from compressor.evaluation.bootstrap import bound, find_influence
from compressor.sensitivity.margin_law import RUNNERS, read_table, tabulate_fdt

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Expected:
    """The predicted margin noise σ, the FDT that the margin law expects for it, and the ends of its 95 % interval."""

    noise: float
    fdt: float
    low: float
    high: float


@dataclass(frozen=True)
class Law:
    """The margin law over prefixes, whose `tables` `[sequence, noise]` are made by `tabulate_fdt`.

        σ = √(mean_p v_p),   FDT = mean_p table_p(σ)

    with v_p the predicted σ² of prefix p. Intervals are 95 % bootstrap-t over prefixes, as those of scores; a prefix is
    left out with its v_p and its table together.
    """

    tables: Array
    seed: int = 0

    @functools.cached_property
    def tables_left_out(self) -> Array:
        """`[sequence, noise]`: mean tables of all prefixes but this one."""
        return leave_out(self.tables)

    def expect(self, squares: Array) -> Expected:
        """The expected FDT of a plan; `squares` `[sequence]` are its predicted σ², in squared logits."""
        noise = np.sqrt(squares.mean())
        fdt = self.fdt(noise)
        influence = find_influence(read_table(self.tables_left_out, np.sqrt(leave_out(squares))))
        low, high = bound(fdt, influence, read_table(self.tables, np.sqrt(squares)), self.seed)
        return Expected(float(noise), float(fdt), float(low), float(high))

    def fdt(self, noise: Array) -> Array:
        """FDT at margin noise σ = `noise` `[...]`."""
        return read_table(np.broadcast_to(self.tables.mean(0), (*noise.shape, self.tables.shape[-1])), noise)

    def cost(self, changes: Array) -> tuple[Array, Array, Array]:
        """Mean over sequences of `changes` `[sequence, option]`, and the ends of its 95 % intervals, all `[option]`."""
        cost = changes.mean(axis=0)
        return cost, *bound(cost, changes - cost, changes, self.seed)


def leave_out(values: Array) -> Array:
    """`[sequence, …]`: means of `values` over all sequences but this one; with one sequence, of that one."""
    # The sum of values ≥ 0 is never below one of them, even rounded, so no mean of squares is negative.
    means: Array = (values.sum(axis=0) - values) / (len(values) - 1) if len(values) > 1 else values
    return means


def read_law(reference: Reference, seed: int) -> Law:
    """The margin law over a reference; it needs only the base's margins."""
    tables = [
        tabulate_fdt(reference.base_readout(start, len(batch)).runners_up(RUNNERS)[1]).cpu().numpy()
        for start, batch in reference.batches()
    ]
    return Law(np.concatenate(tables), seed)
