"""A training of two processes, each of which is this program: by updates whose gradients are known.

`python -m tests.support.train_together FOLDER DTYPE` writes FOLDER/RANK.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from compressor.recovery.masks import Masks
from compressor.recovery.optimizer import Optimizer
from compressor.recovery.processes import Processes, join_processes
from compressor.recovery.trained_weights import make_scales
from compressor.settings import DType
from tests.support.trainers import load_family, prune, quantize

PRUNED = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"]
QUANTIZED = ["model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj"]
STEPS = 5


def make_optimizer(folder: Path, dtype: DType, processes: Processes) -> Optimizer:
    """Of two pruned and two quantized components, and of all other weights."""
    model = load_family("llama", folder, dtype)
    prune(model, PRUNED)
    scales = list(make_scales(model, quantize(model, QUANTIZED)).values())
    frozen = {id(each.view.parameter) for each in scales}
    parameters = [each for each in model.network.parameters() if id(each) not in frozen]
    return Optimizer(parameters, Masks.of(model, PRUNED), 1e-2, 0.1, 0.5, scales, processes)


def take_step(optimizer: Optimizer, step: int, ranks: list[int]) -> None:
    """An update by the gradients of these processes. The last parameter has one in the second process only."""
    with optimizer.training():
        *others, last = optimizer.changed
        for number, parameter in enumerate([*others, last]):
            for rank in ranks:
                if rank or parameter is not last:
                    generator = torch.Generator().manual_seed(1000 * step + 10 * number + rank)
                    gradient = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        optimizer.update(1.0, holds_masks=True)


def main(folder: Path, dtype: DType) -> None:
    """Take all steps, the last two once more from the state before them, which must give the same."""
    processes = join_processes()
    optimizer = make_optimizer(folder, dtype, processes)
    for step in range(STEPS - 2):
        take_step(optimizer, step, [processes.rank])
    state = {name: tensor.clone() for name, tensor in optimizer.list_state().items()}
    again = make_optimizer(folder, dtype, processes)
    with torch.no_grad():
        for new, old in zip(again.changed, optimizer.changed, strict=True):
            new.copy_(old)
        for scales, others in zip(again.scales, optimizer.scales, strict=True):
            scales.logarithms.copy_(others.logarithms)
    again.restore(state)
    for step in range(STEPS - 2, STEPS):
        take_step(optimizer, step, [processes.rank])
        take_step(again, step, [processes.rank])
    assert all(torch.equal(new, old) for new, old in zip(again.changed, optimizer.changed, strict=True))
    assert optimizer.adam is not None
    own = sum(tensor.numel() for known in optimizer.adam.state.values() for tensor in known.values())
    weights = [each.detach() for each in optimizer.changed]
    torch.save({"own": own, "weights": weights, "state": optimizer.list_state()}, folder / f"{processes.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), DType[sys.argv[2]])
