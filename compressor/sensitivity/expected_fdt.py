"""The expected FDT of a plan, with its uncertainty: the margin law applied to predicted σ² of every prefix."""

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compressor.data.reference import Reference
from compressor.evaluation.bootstrap import LEVEL, draw_resamples
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

    with v_p the predicted σ² of prefix p. Intervals are 95 % percentile bootstraps over prefixes; a resample draws v_p
    and the table of a prefix together.
    """

    tables: Array
    seed: int = 0

    def resample(self, values: Array) -> Array:
        """`[resample, …]`: means over resampled sequences of `values` `[sequence, …]`."""
        # Counts are integers, and are divided last: values that are equal in all sequences then stay exactly equal.
        means: Array = self.counts @ values / len(self.tables)
        return means

    @functools.cached_property
    def counts(self) -> Array:
        """`[resample, sequence]`: how often each sequence is in a resample."""
        count = len(self.tables)
        drawn = draw_resamples(count, self.seed)
        places = drawn + count * np.arange(len(drawn))[:, None]
        return np.bincount(places.ravel(), minlength=drawn.size).reshape(drawn.shape).astype(np.float64)

    @functools.cached_property
    def resampled_tables(self) -> Array:
        """`[resample, noise]`: mean tables of the resamples."""
        return self.resample(self.tables)

    def expect(self, squares: Array) -> Expected:
        """The expected FDT of a plan; `squares` `[sequence]` are its predicted σ², in squared logits."""
        noise = float(np.sqrt(squares.mean()))
        resampled = read_table(self.resampled_tables, np.sqrt(self.resample(squares)))
        low, high = np.percentile(resampled, LEVEL)
        return Expected(noise, float(self.fdt(np.array(noise))), float(low), float(high))

    def fdt(self, noise: Array) -> Array:
        """FDT at margin noise σ = `noise` `[...]`."""
        return read_table(np.broadcast_to(self.tables.mean(0), (*noise.shape, self.tables.shape[-1])), noise)

    def cost(self, changes: Array) -> tuple[Array, Array, Array]:
        """Mean over sequences of `changes` `[sequence, option]`, and the ends of its 95 % intervals, all `[option]`."""
        low, high = np.percentile(self.resample(changes), LEVEL, axis=0)
        return changes.mean(axis=0), low, high


def read_law(reference: Reference, seed: int) -> Law:
    """The margin law over a reference; it needs only the base's margins."""
    tables = [
        tabulate_fdt(reference.base_readout(start, len(batch)).runners_up(RUNNERS)[1]).cpu().numpy()
        for start, batch in reference.batches()
    ]
    return Law(np.concatenate(tables), seed)
