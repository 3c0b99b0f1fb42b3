"""Matrices of zeros in `compressor.load`: no product is made with them, and logits have the same bits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

import compressor
from compressor import export
from compressor.export.loading.zero_linear import ZeroLinear
from compressor.models import load_model
from compressor.settings import DType, ModelSettings
from tests.support.exports import draw_tokens
from tests.support.families import USUAL, each, save_checkpoint
from tests.support.loaded_models import generate, logits

PRODUCTS = ("mm", "addmm", "linear", "matmul", "bmm", "mv")


class Products(TorchDispatchMode):
    """Counts the matrix products that have one of the `weights` among their arguments."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.memory, self.count = {weight.data_ptr() for weight in weights}, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        if func.overloadpacket.__name__ in PRODUCTS:
            self.count += any(isinstance(one, Tensor) and one.data_ptr() in self.memory for one in args)
        return func(*args, **(kwargs or {}))


def save_with_zeros(folder: Path, family: str, dtype: DType, *endings: str) -> tuple[Path, list[str]]:
    """A saved model whose linear modules with these names are zero, and their paths."""
    base = save_checkpoint(family, folder / "base", torch.bfloat16, with_tokenizer=True)
    model = load_model(ModelSettings(path=str(base), dtype=dtype))
    paths = []
    for path, module in model.network.named_modules():
        if path.endswith(endings) and isinstance(module, nn.Linear):
            paths.append(path)
            with torch.no_grad():
                module.weight.zero_()
    return export.save("auto", model, folder / "model", {}, {}, {}).path, paths


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("family", each(["llama", "qwen2", "opt", "phi3", "mixtral"], ["llama", "opt"]))
def test_no_product_is_made_and_logits_have_the_same_bits(family: str, dtype: str, tmp_path: Path) -> None:
    """With biases (qwen2, opt) and without; the second layer loses its whole MLP or attention."""
    endings = ("v_proj", "1.mlp.down_proj", "fc2", "1.self_attn.o_proj", "0.mlp.gate_up_proj")
    folder, paths = save_with_zeros(tmp_path, family, DType(dtype), *endings)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    network = compressor.load(folder, dtype=dtype)
    assert paths and {path for path, one in network.named_modules() if isinstance(one, ZeroLinear)} == {*paths}
    with Products([plain.get_submodule(path).weight for path in paths]) as made:
        expected = logits(plain, draw_tokens())
    assert made.count == len(paths)
    with Products([network.get_submodule(path).weight for path in paths]) as made:
        found = logits(network, draw_tokens())
    assert made.count == 0
    assert torch.equal(found, expected)
    assert torch.equal(generate(network, draw_tokens()), generate(plain, draw_tokens()))


@pytest.mark.parametrize("family", each(USUAL, []))
def test_a_model_without_zeros_keeps_its_modules(family: str, tmp_path: Path) -> None:
    network = compressor.load(save_checkpoint(family, tmp_path))
    assert not any(isinstance(module, ZeroLinear) for module in network.modules())


def test_it_is_saved_and_changed_like_any_linear_module(tmp_path: Path) -> None:
    folder, paths = save_with_zeros(tmp_path, "llama", DType.float32, "v_proj")
    network = compressor.load(folder, dtype="float32")
    network.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    module = network.get_submodule(paths[0])
    assert isinstance(module, ZeroLinear)
    inputs = torch.randn(2, 3, module.in_features)
    assert not module(inputs).any() and module(inputs).shape == (2, 3, module.out_features)
    with torch.no_grad():
        module.weight.fill_(1.0)
    assert torch.equal(module(inputs), nn.functional.linear(inputs, module.weight))
    linear = nn.Linear(4, 3).requires_grad_(False)
    linear.weight.zero_()
    moved = ZeroLinear.replacing(linear)
    moved.weight = nn.Parameter(torch.ones(3, 4))
    assert torch.equal(moved(torch.ones(1, 4)), 4 + moved.bias[None])
