"""The models to check: a trained one, and Llamas and a Mixtral with random weights, which are written to disk here."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MixtralConfig

TRAINED = Path(__file__).parents[4] / "shared" / "models"
SHARD_BYTES = 2 << 30


@dataclass(frozen=True)
class Shape:
    """The size of a Llama."""

    layers: int
    width: int
    inner_width: int
    heads: int
    key_value_heads: int
    vocabulary: int
    ties_head: bool = False


SHAPES = {
    "0.1B": Shape(12, 768, 2048, 12, 4, 32000),
    "8B": Shape(32, 4096, 14336, 32, 8, 128256),
    "1B": Shape(16, 2048, 8192, 32, 8, 128256, ties_head=True),
}
"""Name -> shape; the last two are Llama 3.1 8B and Llama 3.2 1B. The larger one comes first: time may run out."""
SMALL_SHAPES = {
    "0.1B": Shape(2, 64, 128, 4, 2, 512),
    "8B": Shape(2, 128, 256, 4, 2, 1024),
    "1B": Shape(2, 96, 192, 4, 2, 1024, ties_head=True),
}
"""The same with so few weights that a CPU runs every check."""


def find_trained(folder: Path) -> Path | None:
    """A trained model below `folder`; None, which is the embedded one, where there is none."""
    return next((folder / name for name in ("tinystories-2.8M", "stories260K") if (folder / name).is_dir()), None)


def make_llama(folder: Path, shape: Shape, device: torch.device) -> None:
    """Write a Llama with random bfloat16 weights. They are drawn on `device`, and saved in files of two GiB."""
    config = LlamaConfig(
        num_hidden_layers=shape.layers, hidden_size=shape.width, intermediate_size=shape.inner_width,
        num_attention_heads=shape.heads, num_key_value_heads=shape.key_value_heads, vocab_size=shape.vocabulary,
        tie_word_embeddings=shape.ties_head, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2,
        architectures=["LlamaForCausalLM"], dtype="bfloat16",
    )  # fmt: skip
    config.save_pretrained(folder)
    with torch.device("meta"):
        sizes = {name: weight.shape for name, weight in AutoModelForCausalLM.from_config(config).named_parameters()}
    generator = torch.Generator(device).manual_seed(0)
    files: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    for name, size in sizes.items():
        shard[name] = draw_weight(name, size, generator).cpu()
        if sum(weight.nbytes for weight in shard.values()) >= SHARD_BYTES or name == [*sizes][-1]:
            file = f"model-{len(set(files.values())) + 1:05}.safetensors"
            save_file(shard, folder / file, {"format": "pt"})
            files |= dict.fromkeys(shard, file)
            shard = {}
    index = {"metadata": {}, "weight_map": files}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def draw_weight(name: str, size: torch.Size, generator: torch.Generator) -> Tensor:
    """Ones for a norm, normal numbers for a matrix, of such a size that activations neither grow nor vanish."""
    weight = torch.ones(size, dtype=torch.bfloat16, device=generator.device)
    if len(size) == 1:
        return weight
    reads_tokens = "embed" in name or "lm_head" in name
    return weight.normal_(0.0, 0.05 if reads_tokens else size[1] ** -0.5, generator=generator)


def make_mixtral(folder: Path, small: bool) -> None:
    """Write a Mixtral of 8 experts with random bfloat16 weights."""
    width = 64 if small else 512
    config = MixtralConfig(
        num_hidden_layers=2 if small else 4, hidden_size=width, intermediate_size=2 * width,
        num_attention_heads=8, num_key_value_heads=4, vocab_size=512 if small else 8192, num_local_experts=8,
        num_experts_per_tok=2, max_position_embeddings=512, sliding_window=None, initializer_range=0.1,
    )  # fmt: skip
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
