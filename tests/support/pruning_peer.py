"""Weights pruned by llmcompressor, and the same as recorded in a file, for machines where it is not installed.

    python -m tests.support.pruning_peer        writes the file; llmcompressor 0.14.0.1 must be installed

llmcompressor needs older versions of its dependencies than this project has. In an environment of its own it is
installed by `pip install --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 nvidia-ml-py==13.580.82`, beside
loguru, pillow, torch and transformers. Both pruners get the same weights and the same inputs.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from compressor_plugins.pruning.sparsegpt import SparseGpt
from compressor_plugins.pruning.wanda import Wanda
from tests.support.pruning import draw_inputs, draw_weight

RECORDED = Path(__file__).parent / "llmcompressor_pruned.safetensors"
PEER = "llmcompressor.modifiers.pruning"
BATCHES = 3
"""The inputs come to the peer in as many parts, and are added up."""


@dataclass(frozen=True)
class Case:
    """A weight, its inputs, and how it is pruned."""

    pruner: Wanda | SparseGpt
    amount: float = 0.5
    seed: int = 0
    shape: tuple[int, int] = (24, 64)
    dtype: torch.dtype = torch.float32
    dead: list[int] = field(default_factory=list)
    """Inputs that are always 0."""
    alike: bool = False
    """Whether all inputs have the same size, and weights are small integers, so that most weights are tied."""

    @property
    def weight(self) -> Tensor:
        weight = draw_weight(self.seed, *self.shape, self.dtype)
        return (2 * weight).round() if self.alike else weight

    @property
    def inputs(self) -> Tensor:
        """`[token, in]`."""
        width = self.shape[1]
        inputs = torch.ones(6, width) if self.alike else draw_inputs(self.seed, width)
        inputs[:, self.dead] = 0
        return inputs


CASES = {
    "wanda": Case(Wanda()),
    "wanda, a quarter": Case(Wanda(), amount=0.25, seed=1),
    "wanda, 2:4": Case(Wanda(pattern="2:4"), seed=2),
    "wanda, bfloat16": Case(Wanda(), seed=3, dtype=torch.bfloat16),
    "wanda, 2:4, bfloat16": Case(Wanda(pattern="2:4"), seed=4, dtype=torch.bfloat16),
    "wanda, dead inputs": Case(Wanda(), seed=5, dead=[0, 7, 63]),
    "wanda, ties": Case(Wanda(), seed=6, alike=True),
    "sparsegpt": Case(SparseGpt(), seed=7),
    "sparsegpt, blocks": Case(SparseGpt(block=16), seed=8),
    "sparsegpt, a quarter": Case(SparseGpt(block=32), amount=0.25, seed=9),
    "sparsegpt, a shorter last block": Case(SparseGpt(block=24), amount=0.75, seed=10),
    "sparsegpt, damping": Case(SparseGpt(block=32, damping=0.1), seed=11),
    "sparsegpt, 2:4": Case(SparseGpt(pattern="2:4"), seed=12),
    "sparsegpt, 2:4, blocks": Case(SparseGpt(pattern="2:4", block=16, damping=0.05), seed=13),
    "sparsegpt, dead inputs": Case(SparseGpt(block=32), seed=14, dead=[0, 7, 63]),
}


def ask_peer(case: Case, sparsity: float | None = None) -> Tensor:
    """`[out, in]`: the weight as llmcompressor prunes it; by default so that as many weights are zero as here."""
    module = nn.Linear(case.shape[1], case.shape[0], bias=False, dtype=case.dtype).requires_grad_(False)
    module.weight.copy_(case.weight)
    # In 2:4 as many weights stay as go, so that it does not matter which of them its N counts.
    pattern = (0, 0) if not case.pruner.pattern else tuple(map(int, case.pruner.pattern.split(":")))
    if isinstance(case.pruner, Wanda):
        peer = importlib.import_module(f"{PEER}.wanda.wanda_sparsify")
        total, count = peer.make_empty_row_scalars(module), 0
        for part in case.inputs.chunk(BATCHES):
            total, count = peer.accumulate_row_scalars(part, module, total, count)
        pruned: Tensor = peer.sparsify_weight(module, {module: total}, sparsity or case.amount, *pattern)
        return pruned
    peer = importlib.import_module(f"{PEER}.sparsegpt.sgpt_sparsify")
    total, count = peer.make_empty_hessian(module), 0
    for part in case.inputs.chunk(BATCHES):
        total, count = peer.accumulate_hessian(part, module, total, count)
    if sparsity is None:  # its threshold is the weight after the last one that it is asked for, which goes too
        sparsity = case.amount - 0.5 / (case.shape[0] * min(case.pruner.block, case.shape[1]))
    # It sets the diagonal of H to 1 where inputs are dead, before damping is taken from its mean.
    others = total.diagonal().sum()
    damping = case.pruner.damping * float(others / (others + len(case.dead)))
    _, pruned = peer.sparsify_weight(module, {module: total}, sparsity, *pattern, case.pruner.block, damping, False)
    return pruned


def read_recorded() -> dict[str, Tensor]:
    return load_file(RECORDED)


if __name__ == "__main__":
    versions = {name: importlib.metadata.version(name) for name in ("llmcompressor", "torch")}
    save_file({name: ask_peer(case).contiguous() for name, case in CASES.items()}, RECORDED, versions)
