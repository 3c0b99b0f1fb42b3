"""The contract suite of metrics."""

import copy
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from compressor.contracts import EstimableMetric, Metric, Readout, Reads
from compressor.testing.plugin_contract import PluginContract, randomness_untouched


class MetricContract(PluginContract):
    """The promises of a `Metric`, tested on random logits of `sizes` (sequences, positions, vocabulary).

    Slopes of an `EstimableMetric` are tested with steps of `step` logits.
    """

    contract = Metric
    sizes: tuple[int, int, int] = (6, 12, 40)
    step: float = 0.05

    @pytest.fixture
    def estimable(self, plugin: Metric) -> EstimableMetric:
        if not isinstance(plugin, EstimableMetric):
            pytest.skip("a promise of estimable metrics alone")
        return plugin

    def draw(self, seed: int) -> Tensor:
        """Random logits `[sequence, position, vocabulary]`."""
        return 3 * torch.randn(self.sizes, generator=torch.Generator().manual_seed(seed))

    def readouts(
        self, plugin: Metric, candidate: Tensor, base: Tensor, rows: Sequence[int] | None = None
    ) -> tuple[Readout, Readout]:
        """Readouts of candidate and base as in a run; the tokens are those that `base` predicts.

        Without Reads.LOGITS or Reads.DISTRIBUTION a run has no outputs of the base. On text the base is the candidate,
        and every third token is counted.
        """

        def refuse() -> Tensor:
            raise AssertionError(
                f"metric `{plugin.name}` reads the base; add Reads.LOGITS or Reads.DISTRIBUTION to its `reads`"
            )

        chosen = list(range(len(base)) if rows is None else rows)
        tokens, logits = base.argmax(-1)[chosen], candidate[chosen]
        if plugin.text() is not None:
            counted = torch.arange(tokens.shape[1]) % 3 == 0
            on_text = Readout(lambda: logits, tokens, counted.expand_as(tokens))
            return on_text, on_text
        readable = bool(plugin.reads & Reads.BASE)
        return Readout(lambda: logits, tokens), Readout(lambda: base[chosen] if readable else refuse(), tokens)

    def read(self, plugin: Metric, readouts: tuple[Readout, Readout]) -> Tensor:
        """Values `[sequence, k]`, with access to the declared outputs only."""
        candidate, base = (readout.restricted(plugin.reads, plugin.name) for readout in readouts)
        return plugin.sequence_values(candidate, base)

    def values(self, plugin: Metric, candidate: Tensor, base: Tensor) -> NDArray[np.float64]:
        """The result of `aggregate`, and the mean of the first value, which searches add up and compare."""
        found = self.read(plugin, self.readouts(plugin, candidate, base)).double().numpy()
        return np.array([plugin.aggregate(found), found[:, 0].mean()])

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
    def test_values_are_finite_rows(self, plugin: Metric, dtype: str) -> None:
        """`sequence_values` is finite and `[sequence, k]`, and uses only the outputs that `reads` declares."""
        candidate, base = (self.draw(seed).to(getattr(torch, dtype)) for seed in (1, 2))
        found = self.read(plugin, self.readouts(plugin, candidate, base))
        assert found.ndim == 2 and len(found) == len(base), f"values have shape {tuple(found.shape)}"
        assert found.isfinite().all(), f"values are not finite: {found}"

    def test_sequences_are_independent(self, plugin: Metric) -> None:
        """The values of a sequence do not depend on the other sequences or their order."""
        candidate, base = self.draw(1), self.draw(2)
        order = list(reversed(range(len(base))))
        together = self.read(plugin, self.readouts(plugin, candidate, base))[order]
        turned = self.read(plugin, self.readouts(plugin, candidate, base, order))
        alone = torch.cat([self.read(plugin, self.readouts(plugin, candidate, base, [row])) for row in order])
        torch.testing.assert_close(turned, together, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-6)

    def test_is_pure(self, plugin: Metric) -> None:
        """The same readouts give the same values. Readouts (which metrics share) and options do not change."""
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
        """On text, logits at positions where `counted` is false have no effect."""
        candidate, base = self.draw(1), self.draw(2)
        first, _ = self.readouts(plugin, candidate, base)
        other = torch.where(first.counted[..., None], candidate, 0.0)
        found = [self.read(plugin, self.readouts(plugin, logits, base)) for logits in (candidate, other)]
        torch.testing.assert_close(found[1], found[0])

    def test_aggregate_takes_many_samples_at_once(self, plugin: Metric) -> None:
        """`aggregate` maps `[..., sequence, k]` to `[...]`, each slice as if it were alone, as the bootstrap needs."""
        found = self.read(plugin, self.readouts(plugin, self.draw(1), self.draw(2))).double().numpy()
        samples = found[np.random.default_rng(0).integers(0, len(found), size=(3, 4, len(found)))]
        values = plugin.aggregate(samples)
        assert np.shape(values) == (3, 4), f"aggregate gave shape {np.shape(values)} for {samples.shape}"
        single = [[float(plugin.aggregate(sample)) for sample in row] for row in samples]
        np.testing.assert_allclose(values, single, rtol=1e-9)
        assert np.isfinite(plugin.aggregate(samples[:, :, :1])).all(), "one sequence alone must have a value"

    def test_nothing_beats_the_base(self, plugin: Metric) -> None:
        """No model beats the base on the base's tokens, or a model that is certain of all tokens on text."""
        base = self.draw(2)
        certain = 30.0 * torch.nn.functional.one_hot(base.argmax(-1), base.shape[-1])
        best = self.values(plugin, base if plugin.text() is None else certain, base)
        for seed in range(10, 20):
            other = self.values(plugin, self.draw(seed), base)
            ahead = plugin.better.sign * (other - best)
            assert (ahead <= 1e-9).all(), f"the base has {best}, another {other}; better is {plugin.better.value}"

    def differentiate(
        self, plugin: EstimableMetric, scalar: Callable[[Readout, Readout], Tensor], candidate: Tensor, base: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The results `[sequence]` of `scalar`, and their gradients by the candidate's logits, in float64."""
        logits = candidate.double().requires_grad_(True)
        readouts = (part.restricted(plugin.reads, plugin.name) for part in self.readouts(plugin, logits, base))
        found = scalar(*readouts)
        assert found.shape == (len(base),), f"one number per sequence is needed, got shape {tuple(found.shape)}"
        assert found.requires_grad, "no gradient comes to the candidate's logits; use operations that have one"
        (gradient,) = torch.autograd.grad(found.sum(), logits, retain_graph=True)
        assert gradient.isfinite().all(), "a gradient holds NaN or infinity"
        (first,) = torch.autograd.grad(found[0], logits)
        assert not first[1:].any(), "the first sequence has a gradient by the logits of others"
        return found.detach(), gradient

    def measure(self, plugin: EstimableMetric, candidate: Tensor, base: Tensor) -> Tensor:
        """The first value `[sequence]`, in float64."""
        return self.read(plugin, self.readouts(plugin, candidate, base))[:, 0].double()

    def test_value_is_the_first_sequence_value(self, estimable: EstimableMetric) -> None:
        """`value` equals the first of `sequence_values` and is 0 for the base; `aggregate` increases with it."""
        candidate, base = self.draw(1), self.draw(2)
        found, _ = self.differentiate(estimable, estimable.value, candidate, base)
        torch.testing.assert_close(found.double(), self.measure(estimable, candidate, base), rtol=1e-5, atol=1e-6)
        at_base, _ = self.differentiate(estimable, estimable.value, base, base)
        assert (at_base.abs() <= 1e-5).all(), f"the base must have a value of 0, got {at_base}"
        values = self.read(estimable, self.readouts(estimable, candidate, base)).double().numpy()
        raised = values + np.eye(1, values.shape[1])
        assert estimable.aggregate(raised) >= estimable.aggregate(values), "aggregate falls where the value rises"

    def test_gradients_are_finite(self, estimable: EstimableMetric) -> None:
        """`value` and `probe` have finite gradients by the candidate's logits, each sequence only by its own."""
        base, generator = self.draw(2), torch.Generator().manual_seed(0)
        for candidate in (base, self.draw(1)):
            self.differentiate(estimable, estimable.value, candidate, base)
            probe = self.differentiate(estimable, lambda c, b: estimable.probe(c, b, generator), candidate, base)[1]
            assert probe.flatten(1).any(1).all(), "a probe has no gradient at all"

    def test_probe_draws_from_its_generator(self, estimable: EstimableMetric) -> None:
        """A generator with the same seed gives the same probe; nothing else is random."""

        def probe() -> Tensor:
            generator = torch.Generator().manual_seed(3)
            return self.differentiate(estimable, lambda c, b: estimable.probe(c, b, generator), self.draw(1), base)[1]

        base = self.draw(2)
        with randomness_untouched():
            first = probe()
        assert torch.equal(probe(), first), "the same generator gave another probe"

    def test_value_has_its_own_slope(self, estimable: EstimableMetric) -> None:
        """Away from the base, the gradient of `value` is the slope of the first value."""
        base, direction = self.draw(2), self.draw(5) / 3
        candidate, step = base + self.draw(4) / 3, self.step / 5
        _, gradient = self.differentiate(estimable, estimable.value, candidate, base)
        ahead, behind = (self.measure(estimable, candidate + side * step * direction, base) for side in (1, -1))
        slope = (gradient * direction).sum((-2, -1))
        torch.testing.assert_close(
            slope, (ahead - behind) / (2 * step), rtol=0.01, atol=1e-3 * float(slope.abs().max())
        )

    @pytest.mark.parametrize("away", [0.0, 1.0])
    def test_probes_have_the_curvature_of_the_value(self, estimable: EstimableMetric, away: float) -> None:
        """Averaged over many draws, the squared slope of `probe` is the second-order change of the value: at the base,
        and `away` from it."""
        base, direction, copies = self.draw(2), self.draw(5) / 3, 600
        candidate = base + away * self.draw(4) / 3
        ahead, here, behind = (
            self.measure(estimable, candidate + t * direction, base) for t in (self.step, 0, -self.step)
        )
        expected = float((ahead + behind - 2 * here).mean()) / (2 * self.step**2)
        many = [part.repeat(copies, 1, 1) for part in (candidate, base)]
        generator = torch.Generator().manual_seed(7)
        _, gradient = self.differentiate(estimable, lambda c, b: estimable.probe(c, b, generator), *many)
        squares = (gradient.unflatten(0, (copies, -1)) * direction).sum((-2, -1)).square().mean(1)
        error = float(squares.std()) / copies**0.5
        assert abs(float(squares.mean()) - expected) <= 4 * error + 0.01 * expected, (
            f"the squared slope of the probe is {float(squares.mean()):.5g} ± {error:.2g} in the mean; "
            f"the value's second-order change is {expected:.5g}"
        )
