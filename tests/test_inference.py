"""Packed models run as they were scored: against the scored network, transformers' own loading, and float64."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

import compressor
from compressor import export, inference
from compressor.contracts import Compressor
from compressor.errors import CompressorError, ConfigError, ModelError, OutputError
from compressor.export import compressed_tensors
from compressor.grids import Grid, Scheme, Strategy
from compressor.inference import kernels, packed, skeleton
from compressor.models import load_model
from compressor.settings import ComponentSettings, DType, ExportSettings, ModelSettings
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Granularity, Int8
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.uniform import Uniform
from tests.families import FAMILIES, save_checkpoint
from tests.test_export import NEW, TOKENS, Shipped, draw_tokens, mix, read_by_transformers, treat
from tests.test_models import REMOTE_CODE
from tests.test_run import make_settings, run

CASES = [*FAMILIES, "llama in bfloat16"]
DENSE = ("gpt2", "mixtral", "qwen3_moe")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)


def export_treated(
    folder: Path, choose: Callable[..., Compressor | None], family: str = "llama", dtype: DType = DType.float32,
    components: ComponentSettings | None = None, **overrides: Any,  # noqa: ANN401 - any config value
) -> Shipped:  # fmt: skip
    """A bfloat16 checkpoint with treatments on it, scored in `dtype`, and its export to `folder`/model."""
    base = save_checkpoint(family, folder / "base", torch.bfloat16, with_tokenizer=True, **overrides)
    model = load_model(ModelSettings(path=str(base), dtype=dtype), components)
    grids = treat(model, choose)
    return Shipped(model, grids, export.save("auto", model, folder / "model", {}, {}, grids), {})


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shipped]:
    """Every family with treatments of every sort, and what plain transformers says of the folder in its own dtype."""
    home = tmp_path_factory.mktemp("shipped")
    made = {}
    for case in CASES:
        dtype = DType.bfloat16 if "bfloat16" in case else DType.float32
        made[case] = export_treated(home / case, mix, case.partition(" ")[0], dtype)
    said = read_by_transformers({one.exported.folder: "" for one in made.values()})
    for one in made.values():
        one.said.update(said[one.exported.folder])
    return made


def generate(network: nn.Module, tokens: Tensor) -> Tensor:
    found: Tensor = network.generate(
        tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False
    )
    return found


def logits(network: nn.Module, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(tokens, use_cache=False).logits
    return found


def hold(network: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer that is held, once; not what a model computes for itself, as rotary frequencies."""
    return {name: tensor for name, tensor in network.state_dict().items() if not name.endswith("inv_freq")}


def count_bytes(network: nn.Module) -> int:
    tensors = [*network.parameters(), *network.buffers()]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


@pytest.mark.parametrize("case", CASES)
def test_a_packed_model_says_what_was_scored_and_what_transformers_says(shipped: dict[str, Shipped], case: str) -> None:
    one = shipped[case]
    network = compressor.load(one.exported.folder)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    assert network.dtype == getattr(torch, one.config["dtype"])
    found, scored = logits(network, draw_tokens()), one.model.logits(draw_tokens(), TOKENS)
    assert torch.equal(found, scored) and torch.equal(found, one.said["logits"])
    assert torch.equal(generate(network, draw_tokens()), one.said["generated"])
    for name in one.said.keys() - {"logits", "generated"}:
        assert torch.equal(network.get_submodule(name).weight, one.said[name]), name


@pytest.mark.parametrize("case", CASES)
def test_what_is_held_is_what_lies_on_disk(shipped: dict[str, Shipped], case: str) -> None:
    one = shipped[case]
    network, schemes = compressor.load(one.exported.folder), list_schemes(one)
    modules = {path: module for path, module in network.named_modules() if isinstance(module, packed.PackedLinear)}
    assert {path: module.scheme for path, module in modules.items()} == schemes
    assert bool(schemes) == (case not in DENSE)
    for path, module in modules.items():
        for suffix, tensor in module.state_dict().items():
            if suffix != "bias":
                assert torch.equal(tensor, one.stored[f"{path}.{suffix}"].to(tensor.dtype)), (path, suffix)
                assert tensor.dtype == one.stored[f"{path}.{suffix}"].dtype or suffix == "weight_scale"
    # Of the integers not a byte more than on disk; whatever is a float has the model's dtype, rotary frequencies aside.
    integers = sum(tensor.nbytes for tensor in one.stored.values() if not tensor.is_floating_point())
    held = count_bytes(network) - sum(b.nbytes for name, b in network.named_buffers() if name.endswith("inv_freq"))
    floats = {name: tensor for name, tensor in hold(network).items() if tensor.is_floating_point()}
    unique = {tensor.data_ptr(): tensor.numel() for tensor in floats.values()}
    buffers = {name for name, _ in network.named_buffers()} - hold(network).keys()
    extra = sum(b.nbytes for name, b in network.named_buffers() if name in buffers and not name.endswith("inv_freq"))
    assert held - extra == integers + sum(unique.values()) * network.dtype.itemsize


def list_schemes(one: Shipped) -> dict[str, Scheme]:
    """As config.json says them, read by the format's own package."""
    if "quantization_config" not in one.config:
        return {}
    from compressed_tensors.quantization import QuantizationConfig

    groups = QuantizationConfig.model_validate(one.config["quantization_config"]).config_groups.values()
    return {
        target: Scheme(w.num_bits, Strategy(w.strategy.value), w.group_size or 0, w.symmetric)
        for group in groups
        for w in [group.weights]
        for target in group.targets
    }


def test_a_model_of_four_bits_takes_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    one = export_treated(
        tmp_path, lambda index, component: Int4(group=64), hidden_size=256, intermediate_size=512, vocab_size=160
    )
    matrices = sum(component.parameters for component in one.model.components.values())
    rest = one.model.base_parameters - matrices
    network = compressor.load(one.exported.folder)
    assert network.dtype == torch.bfloat16
    frequencies = sum(b.nbytes for name, b in network.named_buffers() if name.endswith("inv_freq"))
    shapes = 16 * len(one.model.components)
    assert count_bytes(network) - frequencies - shapes == 2 * rest + matrices * (4 + 16 / 64) / 8
    assert sum(t.nbytes for t in one.stored.values()) == count_bytes(network) - frequencies


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_in_another_dtype_it_is_still_what_transformers_says(
    shipped: dict[str, Shipped], dtype: str, tmp_path: Path
) -> None:
    folders = {shipped[case].exported.folder: dtype for case in ("llama", "gemma3", "phi3")}
    said = read_by_transformers(folders)
    for folder in folders:
        network = compressor.load(folder, dtype=getattr(torch, dtype) if dtype == "float16" else dtype)
        assert str(network.dtype) == f"torch.{dtype}"
        assert torch.equal(logits(network, draw_tokens()), said[folder]["logits"])


def test_no_weight_is_made_before_it_is_used(shipped: dict[str, Shipped], monkeypatch: pytest.MonkeyPatch) -> None:
    """The skeleton has no memory, and loading decodes nothing."""
    replaced = []

    def watch(network: nn.Module, path: str, scheme: Scheme) -> packed.PackedLinear:
        assert all(parameter.is_meta for parameter in network.parameters())
        replaced.append(path)
        return replace(network, path, scheme)

    def fail(*arguments: object) -> Tensor:
        raise AssertionError("a weight is made")

    replace, decode = skeleton.replace_linear, packed.decode
    monkeypatch.setattr(skeleton, "replace_linear", watch)
    monkeypatch.setattr(packed, "decode", fail)
    network = compressor.load(shipped["llama"].exported.folder)
    assert replaced == list(list_schemes(shipped["llama"]))
    with pytest.raises(AssertionError, match="a weight is made"):
        logits(network, draw_tokens())
    monkeypatch.setattr(packed, "decode", decode)
    assert torch.equal(logits(network, draw_tokens()), shipped["llama"].said["logits"])


def test_the_package_of_the_format_is_not_needed(shipped: dict[str, Shipped], monkeypatch: pytest.MonkeyPatch) -> None:
    one = shipped["qwen3"]
    monkeypatch.setitem(compressor.inference.disk.__dict__["__builtins__"].__import__.__globals__, "", None) if 0 else None
    import sys

    for name in [name for name in sys.modules if name.partition(".")[0] == "compressed_tensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(ImportError):
        import compressed_tensors  # noqa: F401
    assert torch.equal(logits(compressor.load(one.exported.folder), draw_tokens()), one.said["logits"])


def test_a_run_is_generated_again_token_for_token(tmp_path: Path) -> None:
    """From `compressor run` to the tokens that its report counts."""
    settings = make_settings(Uniform(), Int8(), export=ExportSettings(format="compressed-tensors"))
    run(tmp_path, settings)
    with safetensors.safe_open(tmp_path / "reference.safetensors", "pt") as file:
        tokens, prefix = file.get_tensor("tokens"), int(file.metadata()["prefix_tokens"])
    lines = [json.loads(line) for line in (tmp_path / "sequences.jsonl").read_text().splitlines()]
    network = compressor.load(tmp_path / "model", dtype="float32")
    network.generation_config = transformers.GenerationConfig(max_new_tokens=tokens.shape[1] - prefix, pad_token_id=0)
    assert any(isinstance(module, packed.PackedLinear) for module in network.modules())
    for sequence, line in zip(tokens[:6], lines[:6], strict=True):
        said = network.generate(sequence[None, :prefix])[0, prefix:]
        assert (said == sequence[prefix:]).long().cumprod(0).sum().item() == line["fdtm"]
