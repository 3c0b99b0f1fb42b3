"""Quantizers against other implementations, where the extra `bench` or a part of it is installed."""

import pytest
import torch

from tests.benchmarks.quantizers import PEERS, describe, make_weights

SAME = {
    ("bitsandbytes", "nf4, double_quant=False"): 0.9999,
    ("bitsandbytes", "nf4, double_quant=True"): 0.97,
    ("hqq", "hqq, start"): 0.9999,
    ("hqq", "hqq"): 0.98,
    ("torchao", "int4, zero points"): 0.9999,
    ("compressed-tensors", "int4, symmetric=True"): 0.9999,
    ("compressed-tensors", "int4, symmetric=False"): 0.9999,
    ("optimum-quanto", "int4, zero points"): 0.9999,
    ("optimum-quanto", "hqq"): 0.98,
    ("llmcompressor", "gptq, order=none"): 0.999,
    ("llmcompressor", "gptq, order=act"): 0.999,
}
"""The least share of integers that must be the same; the others have another grid on purpose."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("peer", PEERS)
def test_integers_are_those_of_others(peer: str) -> None:
    module, compare = PEERS[peer]
    pytest.importorskip(module, reason=f"{peer} of the optional extra `bench` is not installed", exc_type=ImportError)
    for name, weight in make_weights((32, 256), 0).items():
        for method, ours, theirs in compare(weight):
            row = describe(weight, ours, theirs)
            assert row["same"] >= SAME.get((peer, method), 0.7), (name, method, row)
            assert row["gap"] <= 1 or method.startswith("gptq"), (name, method, row)  # one error moves all that follow
            assert torch.isfinite(ours.dense).all()
            if method == "hqq":
                assert row["|error|^0.7, ours"] <= row["|error|^0.7, theirs"] * 1.001, (name, row)
