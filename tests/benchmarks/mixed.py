"""A model whose matrices may be int4, int8 or 16 bits, and the task that other allocators get about it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from compressor.commands.run import Run
from compressor.contracts import Prefixes, SizeRequest, Treatment
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Int8

from .peers.task import Task
from .runs import find_model, open_run
from .scores import METRICS

GROUP = 64
BATCH = 16
FORMATS = {"int4": Treatment("int4", 0.75), "int8": Treatment("int8", 0.5)}


@dataclass
class Case:
    """An opened model with what all searches are asked; `budgets` are mean bits, in the order of the task's."""

    run: Run
    task: Task
    budgets: list[float]

    @property
    def one_pass(self) -> int:
        """Token-layers of a forward pass over all sequences."""
        tokens = self.run.setup.evaluators[Prefixes.SEARCH].reference.tokens
        return tokens[:, :-1].numel() * len(self.run.setup.model.network.model.layers)


@contextmanager
def open_case(model: str, fused: bool, seed: int, budgets: list[float], prefixes: int, proof: int) -> Iterator[Case]:
    """The model rounded to bfloat16, with references on so many prefixes."""
    compressors = [Int4(group=GROUP), Int8()]
    with tempfile.TemporaryDirectory() as folder:
        save_half(model, folder)
        with open_run(folder, compressors, METRICS, seed=seed, prefixes=prefixes, proof_prefixes=proof) as run:
            run.session.fuses = fused
            bits = count_bits(run)
            parameters = sum(component.parameters for component in run.setup.model.components.values())
            limits = [int(budget * parameters) for budget in budgets]
            tokens = run.setup.evaluators[Prefixes.SEARCH].reference.tokens[:, :-1].tolist()
            yield Case(run, Task(folder, tokens, BATCH, GROUP, bits, limits, fused), budgets)


def count_bits(run: Run) -> dict[str, dict[str, int]]:
    """Of each component by format, scales included."""
    components = run.setup.model.components
    sizes = run.session.sizes(SizeRequest({name: list(FORMATS.values()) for name in components}))
    return {
        name: {**dict(zip(FORMATS, map(int, sizes[name]), strict=True)), "none": 16 * component.parameters}
        for name, component in components.items()
    }


def locate(model: str) -> str:
    """The folder of a model, also of the embedded one."""
    return find_model(model) or str(files("compressor") / "tiny")


def save_half(model: str, folder: str) -> None:
    """The checkpoint in bfloat16, so that what is not quantized takes 16 bits."""
    AutoModelForCausalLM.from_pretrained(locate(model), dtype=torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(locate(model)).save_pretrained(folder)
