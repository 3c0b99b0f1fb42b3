"""What an allocator of others is asked, and what it answers, as JSON files; and what its search costs."""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

Allocation = dict[str, str]
"""Component -> format; those that are not named stay as they are."""
FUSED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Matrices that servers load as one."""


@dataclass(frozen=True)
class Task:
    """Allocate the formats int4 (groups of `group` along `in`), int8 (per row) or none to components of `model`.

    `tokens` `[sequence, position]` to calibrate on, `batch` at once; `bits` are those of a whole component by format,
    "none" included; `budgets` are the most bits that all components may take together. With `fused` those of `FUSED`
    share a format.
    """

    model: str
    tokens: list[list[int]]
    batch: int
    group: int
    bits: dict[str, dict[str, int]]
    budgets: list[int]
    fused: bool

    @property
    def parameters(self) -> int:
        return sum(bits["none"] for bits in self.bits.values()) // 16

    def count(self, allocation: Allocation) -> int:
        """The bits that it takes."""
        return sum(bits[allocation.get(component, "none")] for component, bits in self.bits.items())

    def batches(self) -> list[Tensor]:
        return list(torch.tensor(self.tokens).split(self.batch))

    def load(self) -> nn.Module:
        return AutoModelForCausalLM.from_pretrained(self.model, dtype=torch.float32).eval()


@dataclass
class Cost:
    """Token-layers: a layer's forward pass over a token counts 1, its backward pass 2."""

    forward: int = 0
    backward: int = 0
    seconds: float = 0.0

    @property
    def total(self) -> int:
        return self.forward + 2 * self.backward


@dataclass
class Answer:
    """By method an allocation for each budget, None where it found none, and what the search for the first one cost."""

    version: str
    allocations: dict[str, list[Allocation | None]] = field(default_factory=dict)
    costs: dict[str, Cost] = field(default_factory=dict)


@contextmanager
def counted(layers: nn.ModuleList) -> Iterator[Cost]:
    """Inside, the norm in the middle of every layer tells of each time that tokens come by, and gradients come back.

    A layer that is computed again for its backward pass is heard again, however it is called.
    """
    cost, began = Cost(), time.perf_counter()

    def hear(norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        tokens = output.numel() // output.shape[-1]
        cost.forward += tokens

        def hear_back(gradient: Tensor) -> None:
            cost.backward += tokens

        if output.requires_grad:
            output.register_hook(hear_back)

    handles = [layer.post_attention_layernorm.register_forward_hook(hear) for layer in layers]
    try:
        yield cost
    finally:
        cost.seconds = time.perf_counter() - began
        for handle in handles:
            handle.remove()


def answer_task(allocate: Callable[[Task], Answer]) -> None:
    """The script: reads the task in the file of the first argument, writes the answer to that of the second."""
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("answer", type=Path)
    options = parser.parse_args()
    answer = allocate(Task(**json.loads(options.task.read_text())))
    options.answer.write_text(json.dumps(asdict(answer)))


def read_answer(data: dict[str, Any]) -> Answer:
    return Answer(**data | {"costs": {method: Cost(**cost) for method, cost in data["costs"].items()}})
