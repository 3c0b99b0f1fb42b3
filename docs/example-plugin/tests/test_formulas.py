"""Each formula against plain loops, and each error line."""

import pytest
import torch
from compressor_example import Ternary, TopAgreement

from compressor import CompressorError
from compressor.contracts import Component, Context, Readout

WEIGHT = torch.randn(5, 33, generator=torch.Generator().manual_seed(0))
COMPONENT = Component("model.layers.0.mlp.up_proj", "up", 0, (5, 33), stored_bits=32)


def test_ternary_is_the_formula() -> None:
    compressed = Ternary().compress(WEIGHT, 1 - 2 / 32, Context(COMPONENT))
    for row, found in zip(WEIGHT.tolist(), compressed.dense().tolist(), strict=True):
        border = 0.7 * sum(map(abs, row)) / len(row)
        kept = [abs(w) for w in row if abs(w) > border]
        scale = sum(kept) / len(kept)
        assert found == pytest.approx([0 if abs(w) <= border else scale if w > 0 else -scale for w in row])


def test_ternary_takes_two_bits_and_the_scales() -> None:
    compressed = Ternary().compress(WEIGHT, 1 - 2 / 32, Context(COMPONENT))
    assert compressed.bits == 5 * 33 * 2 + 5 * 32


@pytest.mark.parametrize(("k", "expected"), [(1, 1 / 4), (2, 2 / 4), (3, 3 / 4), (4, 1.0)])
def test_top_agreement_counts_ranks(k: int, expected: float) -> None:
    logits = torch.tensor([[[4.0, 3.0, 2.0, 1.0]] * 4])
    readout = Readout(lambda: logits, torch.tensor([[0, 1, 2, 3]]))
    assert TopAgreement(k).sequence_values(readout, readout).tolist() == [[expected]]


@pytest.mark.parametrize("threshold", [-0.1, 1.0])
def test_bad_threshold_is_one_line(threshold: float) -> None:
    with pytest.raises(CompressorError, match=r"^`compressor\.ternary\.threshold` must be in \[0, 1\), got [^\n]+$"):
        Ternary(threshold).offer(COMPONENT)


def test_bad_k_is_one_line() -> None:
    readout = Readout(lambda: torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(CompressorError, match=r"^`metric\.top_agreement\.k` must be at least 1, got 0; [^\n]+$"):
        TopAgreement(0).sequence_values(readout, readout)
