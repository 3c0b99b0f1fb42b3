"""Models with treatments of many kinds on them, their exports, and what transformers makes of these."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from compressor import export
from compressor.compression.apply import make_replacement
from compressor.contracts import Component, Compressor, Context, QuantizedMatrix
from compressor.models import Model, load_model
from compressor.settings import ComponentSettings, DType, ModelSettings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.hqq import Hqq
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Activations, Granularity, Int8
from compressor_plugins.quantization.nf4 import Nf4
from compressor_plugins.quantization.rtn import Rtn
from tests.support.families import save_checkpoint
from tests.support.warm_processes import run_plain

MIXED: tuple[Compressor | None, ...] = (
    Int8(), Int4(group=16), Rtn(bits=[3], group=16), Int4(group=16, symmetric=False, clip=True), Nf4(group=16),
    Magnitude(), None, Int8(granularity=Granularity.tensor), Rtn(bits=[6], group=64), Hqq(group=16),
    Int4(group=20), Int8(group=16),
)  # fmt: skip
"""Of every sort: packable in seven ways, not packable, in groups that divide no width, pruned, and left alone."""

TOKENS, NEW = 12, 8

READER = """
import json, sys, torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
for folder, dtype in json.loads(sys.argv[2]):
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype or "auto").eval()
    said = {}
    tokens = torch.tensor(json.loads(sys.argv[1]))
    with torch.inference_mode():
        said["logits"] = network(tokens, use_cache=False).logits.contiguous()
        said["generated"] = network.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, min_new_tokens=8, do_sample=False)
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Linear):
            said[name] = module.weight.detach().clone()
    save_file(said, folder + "/said.bin")
"""


@dataclass
class Shipped:
    """A model with treatments on it, its export, and what plain transformers make of that."""

    model: Model
    quantized: dict[str, QuantizedMatrix | None]
    exported: export.Exported
    said: dict[str, Tensor]

    @property
    def config(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.exported.path / "config.json").read_text())
        return found

    @property
    def stored(self) -> dict[str, Tensor]:
        return safetensors.torch.load_file(self.exported.path / "model.safetensors")


def treat(model: Model, choose: Callable[[int, Component], Compressor | None]) -> dict[str, QuantizedMatrix | None]:
    """Put a treatment on every component; `quantized` of those that take fewer bits than a dense weight."""
    quantized: dict[str, QuantizedMatrix | None] = {}
    for index, component in enumerate(model.components.values()):
        compressor = choose(index, component)
        if compressor is None:
            continue
        offer = compressor.offer(component)
        amount = offer.largest if offer.levels else 0.5
        compressed = compressor.compress(model.read(component.name), amount, Context(component))
        model.write(component.name, make_replacement(compressed))
        if compressed.bits < component.parameters * component.stored_bits:
            quantized[component.name] = compressed.quantized
    return quantized


def mix(index: int, component: Component) -> Compressor | None:
    """Something else for each component; fused parts of even layers alike."""
    if ":" in component.name and component.layer == 0:
        return Int4(group=16)
    return MIXED[index % len(MIXED)]


def draw_tokens(vocabulary: int = 160) -> Tensor:
    return torch.randint(3, vocabulary, (3, TOKENS), generator=torch.Generator().manual_seed(1))


def read_by_transformers(folders: Mapping[Path, str]) -> dict[Path, dict[str, Tensor]]:
    """Logits, generated tokens and linear weights of each folder, loaded in a dtype, "" for that of its config."""
    wanted = json.dumps([(str(folder), dtype) for folder, dtype in folders.items()])
    command = [sys.executable, "-c", READER, json.dumps(draw_tokens().tolist()), wanted]
    done = run_plain(command)
    assert done.returncode == 0, done.stderr[-2000:]
    return {folder: safetensors.torch.load_file(folder / "said.bin") for folder in folders}


TOKEN = Activations.token

W8A8: tuple[Compressor | None, ...] = (
    Int8(activations=TOKEN), Int8(granularity=Granularity.tensor, activations=TOKEN), Int4(group=16), None, Int8(),
    Int8(group=16, activations=TOKEN),
)  # fmt: skip
"""Integer inputs with every kind of scale that divides the widths, beside weights alone, and what is left alone."""


def choose(index: int, component: Component) -> Compressor | None:
    """Fused parts of the first layer alike, so that they can be packed."""
    return W8A8[0] if ":" in component.name and component.layer == 0 else W8A8[index % len(W8A8)]


def export_treated(
    folder: Path, choose: Callable[..., Compressor | None], family: str = "llama", dtype: DType = DType.float32,
    components: ComponentSettings | None = None, **overrides: Any,  # noqa: ANN401 - any config value
) -> Shipped:  # fmt: skip
    """A bfloat16 checkpoint with treatments on it, scored in `dtype`, and its export to `folder`/model."""
    base = save_checkpoint(family, folder / "base", torch.bfloat16, with_tokenizer=True, **overrides)
    model = load_model(ModelSettings(path=str(base), dtype=dtype), components)
    quantized = treat(model, choose)
    return Shipped(model, quantized, export.save("auto", model, folder / "model", {}, {}, quantized), {})
