"""Quantizers against other implementations, where the extra `bench` or a part of it is installed."""

import pytest
import torch

from compressor.contracts import Context
from compressor_plugins.quantization.llm_int8 import LlmInt8
from tests.benchmarks.quantizers import PEERS, describe, make_component, make_weights

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


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", range(3))
def test_mixed_products_are_those_of_bitsandbytes(seed: int) -> None:
    """LLM.int8() on a CPU: the same features, the same integers but for ties, the same product up to halves.

    There outliers are single numbers, in features that are kept; here every number of such a feature is large.
    """
    functional = pytest.importorskip("bitsandbytes.functional", reason="bitsandbytes is not installed")
    draw = torch.Generator().manual_seed(seed)
    weight = (0.02 * torch.randn(24, 64, generator=draw)).half()
    inputs = torch.randn(9, 64, generator=draw).clamp(-4, 4)
    kept = torch.tensor([7, 30])
    inputs[:, kept] = 20 * inputs[:, kept].sign() + inputs[:, kept]
    inputs = inputs.half()
    data = {"absmax": inputs.float().abs().amax(0)}
    ours = LlmInt8().compress(weight.float(), 0.75, Context(make_component(weight), calibration=data))
    integers, steps, columns = functional.int8_vectorwise_quant(inputs.clone(), threshold=6.0)
    assert columns.tolist() == ours.kept.nonzero().flatten().tolist() == kept.tolist()
    others = ~ours.kept
    treated = ours.input_transform(inputs.float())
    gap = treated[:, others] * 127 / steps[:, None] - integers[:, others]
    assert (gap.abs() < 1e-3).double().mean() >= 0.999 and gap.abs().max() < 1.001
    zeroed = weight.masked_fill(ours.kept, 0)
    theirs, scales, _ = functional.int8_vectorwise_quant(zeroed.clone())
    gap = ours.others.integers.int() - theirs.int()
    assert (gap == 0).double().mean() >= 0.999 and gap.abs().max() <= 1
    assert torch.allclose(ours.others.scales.flatten() * 127, scales, rtol=1e-6)
    # Its whole layer rounds rows of weights by the largest weight, that of kept features included.
    bitsandbytes = pytest.importorskip("bitsandbytes")
    layer = bitsandbytes.nn.Linear8bitLt(64, 24, bias=False, has_fp16_weights=False, threshold=6.0)
    layer.load_state_dict({"weight": weight.clone()}, strict=False)
    said = layer.to("cpu")(inputs).double()
    found, exact = (x.double() @ w.double().T for x, w in ((treated, ours.dense()), (inputs, weight)))
    assert (found - said).abs().max() <= 2 * (said - exact).abs().max()
    assert (found - exact).square().mean() <= 1.5 * (said - exact).square().mean()
