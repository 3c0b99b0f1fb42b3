"""Which components tokens came to is counted without waiting for the device at every product."""

from pathlib import Path

import torch

from compressor.compression.reached import find_reached
from compressor.models.matmul_inputs import MatmulInputs, experts_apart
from tests.support.estimates import make_bench
from tests.support.waits import Waits


def test_no_product_waits_for_the_device(tmp_path: Path) -> None:
    """The model itself waits, where its router sends tokens to experts; the count adds nothing to that."""
    bench = make_bench("mixtral", tmp_path, count=8, batch=2, num_local_experts=16, num_experts_per_tok=1)
    model, reference = bench.model, bench.reference
    for name, parameter in model.network.named_parameters():
        if name.endswith("mlp.gate.weight"):  # the scores are a, −a, and 0 fourteen times, which is never the largest
            parameter.copy_(torch.stack([parameter[0], -parameter[0], *[0 * parameter[0]] * 14]))
    views = model.weight_views
    products: list[object] = []
    with Waits() as own, experts_apart(view.owner for view in views.values()):
        with MatmulInputs(views, lambda *product: products.append(product)):
            for _, tokens in reference.batches():
                model.logits(tokens[:, :-1], reference.continuation_tokens)
    with Waits() as counted:
        found = find_reached(model, reference, model.components)
    assert products and counted.count == own.count
    assert found == {name for name in model.components if name.partition(":")[2][:2].strip(".") in ("", "0", "1")}
