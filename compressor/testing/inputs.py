"""The promises of compressed weights that transform their inputs: a part of the contract suite of compressors."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

from compressor.contracts import CompressedWeight, Compressor, Context
from compressor.testing.plugin_contract import PluginContract, randomness_untouched, same_bits

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def make_inputs(width: int, dtype: torch.dtype) -> Tensor:
    """`[sequence, position, width]`: normal numbers, tokens of other sizes, one with outliers, and one of zeros."""
    import torch

    inputs = torch.randn(3, 4, width, generator=torch.Generator().manual_seed(3))
    inputs[0] *= torch.tensor([1e-3, 1.0, 30.0, 0.0])[:, None]
    inputs[1, 2, :: max(1, width // 3)] *= 100
    return inputs.to(dtype)


class InputsContract(PluginContract, ABC):
    """The promises of `CompressedWeight.input_transform`; weights that have none keep all of them."""

    def weights(self, plugin: Compressor, weight: Tensor) -> Iterator[CompressedWeight]:
        """The weight at every amount that is tried."""
        context = self.context(weight)
        yield from (plugin.compress(weight, amount, context) for amount in self.amounts(plugin, weight))

    @abstractmethod
    def context(self, weight: Tensor) -> Context:
        """A component that is stored as `weight` is."""

    @abstractmethod
    def amounts(self, plugin: Compressor, weight: Tensor) -> list[float]:
        """What is tried of what is offered."""

    def test_treated_inputs_are_announced(self, plugin: Compressor, weight: Tensor) -> None:
        """Where `transforms_inputs` is False no weight has an `input_transform`. A weight that is `quantized` has the
        same `input_transform` as its integers."""
        for compressed in self.weights(plugin, weight):
            assert plugin.transforms_inputs or compressed.input_transform is None, (
                "a weight has an `input_transform`, so `transforms_inputs` must be True"
            )
            if (matrix := compressed.quantized) is None:
                continue
            rounding, transform = matrix.input_rounding, compressed.input_transform
            assert (rounding is None) == (transform is None), (
                "`quantized.input_rounding` and `input_transform` must both be None, or neither"
            )
            if rounding is not None and transform is not None:
                inputs = make_inputs(weight.shape[1], weight.dtype)
                assert same_bits(rounding(inputs), transform(inputs)), (
                    "`quantized.input_rounding` and `input_transform` give different inputs"
                )

    def test_treated_inputs_stand_in_for_the_inputs(self, plugin: Compressor, weight: Tensor) -> None:
        """`input_transform` gives as many finite numbers of the same dtype; none for none."""
        for compressed in self.weights(plugin, weight):
            if (input_transform := compressed.input_transform) is None:
                continue
            inputs = make_inputs(weight.shape[1], weight.dtype)
            for given in (inputs, inputs[0], inputs[0, 0], inputs[:0]):
                found = input_transform(given)
                assert (found.shape, found.dtype, found.device) == (given.shape, given.dtype, given.device)
                assert found.isfinite().all(), "treated inputs hold NaN or infinity"

    def test_treat_is_pure(self, plugin: Compressor, weight: Tensor) -> None:
        """The same inputs give the same bits, by a weight that was made again too; they stay as they are."""
        inputs = make_inputs(weight.shape[1], weight.dtype)
        before = inputs.clone()
        for compressed, again in zip(self.weights(plugin, weight), self.weights(plugin, weight), strict=True):
            if compressed.input_transform is None or again.input_transform is None:
                assert compressed.input_transform is again.input_transform, (
                    "the same weight treats its inputs only once"
                )
                continue
            with randomness_untouched():
                first = compressed.input_transform(inputs).clone()
            assert same_bits(first, compressed.input_transform(inputs)), (
                "the same inputs give another result the second time"
            )
            assert same_bits(first, again.input_transform(inputs)), "the same weight treats its inputs in another way"
            assert same_bits(inputs, before), "the inputs that were given were changed"

    def test_every_token_is_treated_by_itself(self, plugin: Compressor, weight: Tensor) -> None:
        """What becomes of a token does not depend on the others: trials are scored in batches of any size."""
        inputs = make_inputs(weight.shape[1], weight.dtype)
        for compressed in self.weights(plugin, weight):
            if compressed.input_transform is None:
                continue
            together = compressed.input_transform(inputs)
            for sequence, position in itertools.product(*map(range, inputs.shape[:2])):
                alone = compressed.input_transform(inputs[sequence : sequence + 1, position : position + 1])
                assert same_bits(together[sequence, position], alone[0, 0]), "a token depends on the tokens beside it"
