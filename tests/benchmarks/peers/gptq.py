"""llmcompressor's GPTQ on a CPU: `oneshot` with its sequential pipeline.

    ENVIRONMENT/bin/python -m tests.benchmarks.peers.gptq TASK.json ANSWER.json

Layer by layer, on inputs from the compressed layers below; symmetric groups, scales by its own observer. `act` is its
`static` order. Seconds are of `oneshot` alone, the model loaded before.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM


@dataclass(frozen=True)
class Rounding:
    """Round `components` of `model` on `tokens` `[sequence, position]`, `batch` at once; weights go to `weights`."""

    model: str
    tokens: list[list[int]]
    batch: int
    components: list[str]
    bits: int
    group: int
    damping: float
    block: int
    order: str
    weights: str


@dataclass
class Rounded:
    """What the work took by the clock and by the processor."""

    version: str
    seconds: float
    busy: float


def compress(rounding: Rounding) -> Rounded:
    from importlib.metadata import version

    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from torch.utils.data import DataLoader

    model = AutoModelForCausalLM.from_pretrained(rounding.model, dtype=torch.float32).eval()
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    weights = {"num_bits": rounding.bits, "type": "int", "symmetric": True, "strategy": "group"}
    modifier = GPTQModifier(
        config_groups={"all": {"targets": ["Linear"], "weights": weights | {"group_size": rounding.group}}},
        ignore=[name for name in linear if name not in rounding.components],
        block_size=rounding.block,
        dampening_frac=rounding.damping,
        actorder={"act": "static", "none": None}[rounding.order],
    )
    rows = [
        {"input_ids": torch.tensor(row), "attention_mask": torch.ones(len(row), dtype=int)} for row in rounding.tokens
    ]
    began, busy = time.perf_counter(), time.process_time()
    oneshot(
        model=model,
        dataset=DataLoader(rows, batch_size=rounding.batch),
        recipe=modifier,
        num_calibration_samples=len(rows),
        pipeline="sequential",
    )
    took = Rounded(version("llmcompressor"), time.perf_counter() - began, time.process_time() - busy)
    found = {name: model.get_submodule(name).weight.detach().clone() for name in rounding.components}
    save_file(found, rounding.weights)
    return took


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("task", type=Path)
    parser.add_argument("answer", type=Path)
    options = parser.parse_args()
    rounded = compress(Rounding(**json.loads(options.task.read_text())))
    options.answer.write_text(json.dumps(asdict(rounded)))


if __name__ == "__main__":
    main()
