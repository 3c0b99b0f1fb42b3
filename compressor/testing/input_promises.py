"""The promises of weights that transform their inputs. Each function fails if a case breaks the promise."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from compressor.testing.compressor_case import CompressorCase
from compressor.testing.plugin_contract import randomness_untouched, same_bits

if TYPE_CHECKING:
    from torch import Tensor


def make_inputs(case: CompressorCase) -> Tensor:
    """`[sequence, position, in]`: normal random tokens, some scaled, one with outliers and one of zeros."""
    import torch

    width = case.weight.shape[1]
    inputs = torch.randn(3, 4, width, generator=torch.Generator().manual_seed(3))
    inputs[0] *= torch.tensor([1e-3, 1.0, 30.0, 0.0])[:, None]
    inputs[1, 2, :: max(1, width // 3)] *= 100
    return inputs.to(case.weight.dtype)


def transformed_inputs_are_announced(case: CompressorCase) -> None:
    """If `transforms_inputs` is False, no weight has an `input_transform`."""
    for compressed in case.compress_all():
        assert case.plugin.transforms_inputs or compressed.input_transform is None, (
            "a weight has an `input_transform`, so `transforms_inputs` must be True"
        )


def transformed_inputs_stand_in_for_the_inputs(case: CompressorCase) -> None:
    """`input_transform` keeps shape, dtype and device, and gives finite numbers; also for empty inputs."""
    for compressed in case.compress_all():
        if (input_transform := compressed.input_transform) is None:
            continue
        inputs = make_inputs(case)
        for given in (inputs, inputs[0], inputs[0, 0], inputs[:0]):
            found = input_transform(given)
            assert (found.shape, found.dtype, found.device) == (given.shape, given.dtype, given.device)
            assert found.isfinite().all(), "transformed inputs hold NaN or infinity"


def input_transform_is_pure(case: CompressorCase) -> None:
    """The same inputs give the same bits, also with a weight that is compressed again. Inputs do not change."""
    inputs = make_inputs(case)
    before = inputs.clone()
    for compressed, again in zip(case.compress_all(), case.compress_all(), strict=True):
        if compressed.input_transform is None or again.input_transform is None:
            assert compressed.input_transform is again.input_transform, (
                "the same weight transforms its inputs only once"
            )
            continue
        with randomness_untouched():
            first = compressed.input_transform(inputs).clone()
        assert same_bits(first, compressed.input_transform(inputs)), (
            "the same inputs give another result the second time"
        )
        assert same_bits(first, again.input_transform(inputs)), "the same weight transforms its inputs in another way"
        assert same_bits(inputs, before), "the inputs that were given were changed"


def every_token_is_transformed_by_itself(case: CompressorCase) -> None:
    """The result for a token does not depend on other tokens, because trials are scored in batches of any size."""
    inputs = make_inputs(case)
    for compressed in case.compress_all():
        if compressed.input_transform is None:
            continue
        together = compressed.input_transform(inputs)
        for sequence, position in itertools.product(*map(range, inputs.shape[:2])):
            alone = compressed.input_transform(inputs[sequence : sequence + 1, position : position + 1])
            assert same_bits(together[sequence, position], alone[0, 0]), "a token depends on the tokens beside it"
