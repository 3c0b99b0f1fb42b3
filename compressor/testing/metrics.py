"""The contract suite of metrics."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pytest

from compressor.contracts import Metric, Reads
from compressor.testing.promises import PluginContract, randomness_untouched

if TYPE_CHECKING:
    from torch import Tensor

    from compressor.readout import Readout


class MetricContract(PluginContract):
    """The promises of a `Metric`, tried on random logits; `sizes` are their sequences, positions and vocabulary."""

    contract = Metric
    sizes: tuple[int, int, int] = (6, 12, 40)

    def draw(self, seed: int) -> Tensor:
        """Random logits `[sequence, position, vocabulary]`."""
        import torch

        return 3 * torch.randn(self.sizes, generator=torch.Generator().manual_seed(seed))

    def readouts(
        self, plugin: Metric, candidate: Tensor, base: Tensor, rows: Sequence[int] | None = None
    ) -> tuple[Readout, Readout]:
        """Candidate and base as a run gives them, the tokens being what `base` predicts.

        Without Reads.LOGITS or Reads.DISTRIBUTION a run has no readings of the base. On text the base is the candidate,
        and every third token counts.
        """
        import torch

        from compressor.readout import Readout

        def refuse() -> Tensor:
            raise AssertionError(
                f"metric `{plugin.name}` reads the base; add Reads.LOGITS or Reads.DISTRIBUTION to its `reads`"
            )

        chosen = list(range(len(base)) if rows is None else rows)
        tokens, said = base.argmax(-1)[chosen], candidate[chosen]
        if plugin.text() is not None:
            counted = torch.arange(tokens.shape[1]) % 3 == 0
            on_text = Readout(lambda: said, tokens, counted.expand_as(tokens))
            return on_text, on_text
        readable = bool(plugin.reads & Reads.BASE)
        return Readout(lambda: said, tokens), Readout(lambda: base[chosen] if readable else refuse(), tokens)

    def read(self, plugin: Metric, readouts: tuple[Readout, Readout]) -> Tensor:
        """Statistics `[sequence, k]` from the declared readings alone."""
        candidate, base = (readout.restricted(plugin.reads, plugin.name) for readout in readouts)
        return plugin.statistics(candidate, base)

    def value(self, plugin: Metric, candidate: Tensor, base: Tensor) -> float:
        return float(plugin.aggregate(self.read(plugin, self.readouts(plugin, candidate, base)).double().numpy()))

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_statistics_are_finite_rows(self, plugin: Metric, dtype: str) -> None:
        """`statistics` is `[sequence, k]` and finite, from nothing but the readings that `reads` declares."""
        import torch

        candidate, base = (self.draw(seed).to(getattr(torch, dtype)) for seed in (1, 2))
        found = self.read(plugin, self.readouts(plugin, candidate, base))
        assert found.ndim == 2 and len(found) == len(base), f"statistics have shape {tuple(found.shape)}"
        assert found.isfinite().all(), f"statistics are not finite: {found}"

    def test_sequences_are_independent(self, plugin: Metric) -> None:
        """A sequence's statistics do not depend on which others it is scored with, or in which order."""
        import torch

        candidate, base = self.draw(1), self.draw(2)
        order = list(reversed(range(len(base))))
        together = self.read(plugin, self.readouts(plugin, candidate, base))[order]
        turned = self.read(plugin, self.readouts(plugin, candidate, base, order))
        alone = torch.cat([self.read(plugin, self.readouts(plugin, candidate, base, [row])) for row in order])
        torch.testing.assert_close(turned, together, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)

    def test_is_pure(self, plugin: Metric) -> None:
        """The same readings give the same statistics; readings and options stay as they are: metrics share them."""
        import torch

        options = copy.deepcopy(plugin)
        candidate, base = self.readouts(plugin, self.draw(1), self.draw(2))
        shared = [candidate, base] if plugin.reads & Reads.BASE else [candidate]
        before = [(readout.logits.clone(), readout.log_probabilities.clone()) for readout in shared]
        with randomness_untouched():
            first = self.read(plugin, (candidate, base))
        assert torch.equal(first, self.read(plugin, (candidate, base))), "the second call differs from the first"
        after = [(readout.logits, readout.log_probabilities) for readout in shared]
        for old, new in zip(before, after, strict=True):
            assert torch.equal(old[0], new[0]) and torch.equal(old[1], new[1]), "a reading was changed in place"
        assert plugin == options, "an option was changed"

    def test_only_counted_positions_matter(self, plugin: Metric) -> None:
        """On text, what the candidate says where `counted` is false changes nothing."""
        import torch

        candidate, base = self.draw(1), self.draw(2)
        first, _ = self.readouts(plugin, candidate, base)
        other = torch.where(first.counted[..., None], candidate, 0.0)
        found = [self.read(plugin, self.readouts(plugin, logits, base)) for logits in (candidate, other)]
        torch.testing.assert_close(found[1], found[0])

    def test_aggregate_takes_many_samples_at_once(self, plugin: Metric) -> None:
        """`aggregate` is `[..., sequence, k]` -> `[...]`, each slice as if it were alone: bootstrapping needs that."""
        found = self.read(plugin, self.readouts(plugin, self.draw(1), self.draw(2))).double().numpy()
        samples = found[np.random.default_rng(0).integers(0, len(found), size=(3, 4, len(found)))]
        values = plugin.aggregate(samples)
        assert np.shape(values) == (3, 4), f"aggregate gave shape {np.shape(values)} for {samples.shape}"
        single = [[float(plugin.aggregate(sample)) for sample in row] for row in samples]
        np.testing.assert_allclose(values, single, rtol=1e-9)
        assert np.isfinite(plugin.aggregate(samples[:, :, :1])).all(), "one sequence alone must have a value"

    def test_nothing_beats_the_base(self, plugin: Metric) -> None:
        """On the base's greedy tokens no unrelated candidate is better than the base; on text none is better than
        one that is certain of every token."""
        import torch

        base = self.draw(2)
        certain = 30.0 * torch.nn.functional.one_hot(base.argmax(-1), base.shape[-1])
        best = self.value(plugin, base if plugin.text() is None else certain, base)
        for seed in range(10, 20):
            other = self.value(plugin, self.draw(seed), base)
            ahead = plugin.better.sign * (other - best)
            assert ahead <= 1e-9, (
                f"the base has {best}, an unrelated candidate {other}; better is {plugin.better.value}"
            )
