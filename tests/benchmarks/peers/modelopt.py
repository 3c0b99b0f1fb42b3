"""NVIDIA ModelOpt's `auto_quantize`, both methods, on a CPU.

    ENVIRONMENT/bin/python -m tests.benchmarks.peers.modelopt TASK.json ANSWER.json

int4 is its INT4_BLOCKWISE_WEIGHT_ONLY_CFG with blocks of the task's group, int8 its INT8_WEIGHT_ONLY_CFG, which has a
scale per output row; what is not quantized is its own choice "none", and the LM head is left out. Scores are its own,
of all tokens of the calibration sequences. Its solvers get the bits that components really take, scales and shorter
last groups counted, where its cost model has one number for each format. Weights need no calibration, and none is run;
what `gradient` computes anew of every matrix for every format is not counted either. Matrices that servers load as one
share a format by its default rules; without `fused` there are no rules.
"""

import copy
import importlib.metadata
from typing import Any

import modelopt.torch.quantization as mtq
import torch
from modelopt.torch.quantization import algorithms
from torch import Tensor

from .task import Allocation, Answer, Cost, Task, answer_task, counted

SEARCHERS = {"kl_div": algorithms.AutoQuantizeKLDivSearcher, "gradient": algorithms.AutoQuantizeGradientSearcher}


def list_formats(task: Task) -> dict[str, dict[str, Any]]:
    """The two formats, with the mean of the bits that they take."""
    int4 = copy.deepcopy(mtq.INT4_BLOCKWISE_WEIGHT_ONLY_CFG)
    for entry in int4["quant_cfg"]:
        if (entry.get("cfg") or {}).get("block_sizes"):
            entry["cfg"]["block_sizes"] = {-1: task.group}
    formats = {"int4": int4, "int8": copy.deepcopy(mtq.INT8_WEIGHT_ONLY_CFG)}
    for name, settings in formats.items():
        settings["effective_bits"] = mean_bits(task, name)
    return formats


def mean_bits(task: Task, form: str) -> float:
    return sum(bits[form] for bits in task.bits.values()) / task.parameters


def search(task: Task, method: str) -> tuple[dict[str, Any], Cost]:
    """What it knows of every format of every group, and what that took; it is solved later, by `solve`."""
    model, batches = task.load(), task.batches()
    with counted(model.model.layers) as cost:
        _, state = mtq.auto_quantize(
            model,
            constraints={"effective_bits": 16.0},
            quantization_formats=list(list_formats(task).values()),
            data_loader=batches,
            forward_step=(lambda model, batch: model(batch).logits) if method == "kl_div" else forward_with_loss,
            loss_func=lambda output, batch: output.loss,
            disabled_layers="*lm_head*",
            num_calib_steps=0,
            num_score_steps=len(batches),
            method=method,
        )
    return {name: stat for name, stat in state["candidate_stats"].items() if "lm_head" not in name}, cost


def forward_with_loss(model: Any, batch: Tensor) -> Any:  # noqa: ANN401 - whatever the family gives
    return model(batch, labels=batch)


def solve(task: Task, method: str, stats: dict[str, Any], budget: int) -> Allocation | None:
    """What its solver makes of the scores under a budget in bits; None where that exceeds it."""
    exact = {name: stat | {"costs": count_costs(task, stat)} for name, stat in stats.items()}
    searcher = SEARCHERS[method]()
    searcher.candidate_stats, searcher.cost_model = exact, "weight"
    searcher.config = searcher.default_search_config | {"cost_model": "weight"}
    best, _ = searcher.run_search_with_stats(budget / 16)
    forms = {name: name_format(task, chosen["format"]) for name, chosen in best.items()}
    found = {module: form for name, form in forms.items() for module in stats[name]["module_names"] if form != "none"}
    return found if task.count(found) <= budget else None


def count_costs(task: Task, stat: dict[str, Any]) -> list[float]:
    """Of each format of a group, in weights of 16 bits."""
    forms = [name_format(task, recipe) for recipe in stat["formats"]]
    return [sum(task.bits[module][form] for module in stat["module_names"]) / 16 for form in forms]


def name_format(task: Task, recipe: Any) -> str:  # noqa: ANN401 - its QuantRecipe
    bits = {"int4": mean_bits(task, "int4"), "int8": mean_bits(task, "int8"), "none": 16.0}
    return min(bits, key=lambda name: abs(bits[name] - recipe.compression * 16))


def allocate(task: Task) -> Answer:
    torch.manual_seed(0)
    answer = Answer(importlib.metadata.version("nvidia-modelopt"))
    for searcher in SEARCHERS.values():
        if not task.fused:
            searcher.quant_grouping_rules = []
    for method in SEARCHERS:
        state, answer.costs[method] = search(task, method)
        answer.allocations[method] = [solve(task, method, state, budget) for budget in task.budgets]
    return answer


if __name__ == "__main__":
    answer_task(allocate)
