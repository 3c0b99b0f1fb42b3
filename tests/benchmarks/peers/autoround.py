"""Intel AutoRound's AutoScheme, on a CPU: what a scheme costs by gradients, rounded to nearest, and its knapsack.

    ENVIRONMENT/bin/python -m tests.benchmarks.peers.autoround TASK.json ANSWER.json

int4 is a symmetric scheme of 4 bits in the task's groups, int8 one of 8 bits per output row, none its BF16. Nothing is
tuned (what it calls iters=0). It is given the task's tokens in place of a data set's, and the bits that components
really take in place of its own count, which adds a zero point to every symmetric group. Matrices of `fused` are its
shared layers. Scores of the first budget are kept in a folder of the process for the others, as it does by itself.
"""

import importlib.metadata
import os
import tempfile
from typing import Any

from torch import nn

from .task import FUSED, Allocation, Answer, Cost, Task, answer_task, counted

BITS = {4: "int4", 8: "int8"}


def list_schemes(task: Task) -> dict[str, Any]:
    from auto_round.schemes import QuantizationScheme

    common: dict[str, Any] = {"sym": True, "data_type": "int", "act_bits": 16}
    return {
        "int4": QuantizationScheme(bits=4, group_size=task.group, **common),
        "int8": QuantizationScheme(bits=8, group_size=-1, **common),
        "none": QuantizationScheme(bits=16, group_size=-1, **common),
    }


def count_exactly(task: Task, module: nn.Module) -> tuple[int, float]:
    """In place of its `compute_layer_bits`: the bits of a layer with a scheme on it, whole and per weight."""
    bits = task.bits[module.component][BITS.get(getattr(module, "bits", 16), "none")]
    return bits, bits / module.weight.numel()


def search(task: Task, budgets: list[int]) -> tuple[list[Allocation | None], list[Cost]]:
    from auto_round.auto_scheme import delta_loss
    from auto_round.auto_scheme import utils as scheme_utils
    from auto_round.auto_scheme.gen_auto_scheme import AutoScheme, GenScheme
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(task.model)
    for module in (delta_loss, scheme_utils):
        module.compute_layer_bits = lambda layer, ignore_scale_zp_bits=False: count_exactly(task, layer)
    delta_loss.get_dataloader = lambda *_, **__: [{"input_ids": batch} for batch in task.batches()]
    schemes, found, costs = list_schemes(task), [], []
    for budget in budgets:
        model = task.load()
        for name in task.bits:
            model.get_submodule(name).component = name
        auto = AutoScheme(
            avg_bits=budget / task.parameters,
            options=list(schemes.values()),
            shared_layers=FUSED if task.fused else None,
            nsamples=len(task.tokens),
            seqlen=len(task.tokens[0]),
            batch_size=task.batch,
            device_map="cpu",
            low_cpu_mem_usage=False,
        )
        with counted(model.model.layers) as cost:
            config = GenScheme(auto, model, list(task.bits), {}, "given", "cpu", tokenizer).get_layer_config()
        allocation = {name: BITS[config[name]["bits"]] for name in task.bits if config[name]["bits"] in BITS}
        found.append(allocation if task.count(allocation) <= budget else None)
        costs.append(cost)
    return found, costs


def allocate(task: Task) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["AR_AUTO_SCHEME_CACHE"] = folder
        found, costs = search(task, task.budgets)
    return Answer(importlib.metadata.version("auto-round"), {"AutoScheme": found}, {"AutoScheme": costs[0]})


if __name__ == "__main__":
    answer_task(allocate)
