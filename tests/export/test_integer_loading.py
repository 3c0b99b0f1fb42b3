"""Models whose inputs are integers run as they were scored."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor import export
from compressor.contracts import QuantizedMatrix, TokenRounding
from compressor.errors import ModelError
from compressor.export.loading import packed_linear
from compressor.models import Replacement, load_model
from compressor.settings import DType, ModelSettings
from compressor_plugins.quantization.int8 import Activations, Int8
from tests.support.exports import TOKENS, Shipped, choose, draw_tokens, export_treated, read_by_transformers
from tests.support.families import save_checkpoint
from tests.support.hostile_models import assert_one_line, describe, rewrite, set_all, set_group, set_weights
from tests.support.loaded_models import count_bytes, count_computed, generate, logits

TOKEN = Activations.token
CASES = {
    f"{family} in {dtype.value}": (family, dtype)
    for family, dtype in [
        *((family, dtype) for family in ("llama", "qwen3") for dtype in (DType.float32, DType.bfloat16)),
        *((family, DType.float32) for family in ("gemma3", "phi3", "opt")), ("gemma3", DType.bfloat16),
    ]
}  # fmt: skip


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shipped]:
    """Modules with integer inputs and all kinds of scales beside packed and dense ones, and what transformers says."""
    home = tmp_path_factory.mktemp("shipped")
    made = {case: export_treated(home / case, choose, *kind) for case, kind in CASES.items()}
    said = read_by_transformers({one.exported.path: "" for one in made.values()})
    for one in made.values():
        one.said.update(said[one.exported.path])
    return made


def find_modules(network: nn.Module, kind: type[nn.Module]) -> dict[str, Any]:
    return {path: module for path, module in network.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("case", CASES)
def test_it_says_what_was_scored_and_what_transformers_says(shipped: dict[str, Shipped], case: str) -> None:
    one = shipped[case]
    network = compressor.load(one.exported.path)
    found = logits(network, draw_tokens())
    assert network.dtype == getattr(torch, one.config["dtype"]) and torch.equal(found, one.said["logits"])
    with one.model.input_transforms.only(one.exported.treated):  # all of them, but for phi3 and opt
        assert torch.equal(found, one.model.logits(draw_tokens(), TOKENS))
    assert len(one.exported.treated) == len(one.model.input_transforms.names) or case.startswith(("phi3", "opt"))
    assert torch.equal(generate(network, draw_tokens()), one.said["generated"])
    for name in one.said.keys() - {"logits", "generated"}:
        assert torch.equal(network.get_submodule(name).weight, one.said[name]), name
    for module in find_modules(network, packed_linear.ByteLinear).values():
        module.rounding = None
    assert not torch.equal(logits(network, draw_tokens()), found)


@pytest.mark.parametrize("case", CASES)
def test_bytes_are_held_as_they_lie_on_disk(shipped: dict[str, Shipped], case: str) -> None:
    one = shipped[case]
    network = compressor.load(one.exported.path)
    modules, treated = find_modules(network, packed_linear.ByteLinear), set()
    for group in one.config["quantization_config"]["config_groups"].values():
        if group["input_activations"] is not None:
            treated |= {*group["targets"]}
    assert modules.keys() == treated and len(treated) > 1
    for path, module in modules.items():
        state = module.state_dict()
        assert state.keys() - {"bias"} == {"weight", "weight_scale"} and state["weight"].dtype == torch.int8
        assert torch.equal(state["weight"], one.stored[f"{path}.weight"])
        assert torch.equal(state["weight_scale"], one.stored[f"{path}.weight_scale"].to(network.dtype))
        assert module.weight.dtype == network.dtype and "inputs of 8 bits" in repr(module)
    floats, whole = (
        [tensor for tensor in one.stored.values() if tensor.is_floating_point() == wanted] for wanted in (True, False)
    )
    expected = sum(tensor.nbytes for tensor in whole)
    expected += sum(tensor.numel() for tensor in floats) * network.dtype.itemsize
    assert count_bytes(network) == expected + count_computed(one.model.network)


def test_in_another_dtype_it_is_still_what_transformers_says(shipped: dict[str, Shipped], tmp_path: Path) -> None:
    folders = {
        Path(shutil.copytree(shipped[f"{family} in float32"].exported.path, tmp_path / f"{family} {dtype}")): dtype
        for family in ("llama", "gemma3")
        for dtype in ("float32", "bfloat16", "float16")
    }
    said = read_by_transformers(folders)
    for folder, dtype in folders.items():
        assert torch.equal(logits(compressor.load(folder, dtype=dtype), draw_tokens()), said[folder]["logits"])


def fail(matrix: QuantizedMatrix) -> Tensor:
    raise AssertionError("a weight is made")


def test_a_folder_of_bytes_alone(whole: Shipped, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is made of them before it is used."""
    one = whole
    assert one.config["quantization_config"]["format"] == "int-quantized"
    with monkeypatch.context() as patch:
        patch.setattr(QuantizedMatrix, "dense", fail)
        network = compressor.load(one.exported.path)
        with pytest.raises(AssertionError, match="a weight is made"):
            logits(network, draw_tokens())
    assert torch.equal(logits(network, draw_tokens()), one.model.logits(draw_tokens(), TOKENS))
    assert len(find_modules(network, packed_linear.ByteLinear)) == len(one.model.components)


def test_bytes_of_fewer_bits(tmp_path: Path) -> None:
    """As a plugin may have them: transformers reads such a folder, and so does `compressor.load`."""
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    model = load_model(ModelSettings(path=str(base)))
    quantized: dict[str, QuantizedMatrix | None] = {}
    for name in model.components:
        weight = model.read(name)
        scales = weight.abs().amax(1, keepdim=True).bfloat16().float() / 8
        whole = (weight / scales).round().clamp(-8, 7).to(torch.int8)
        matrix = QuantizedMatrix(whole, scales, 4, weight.shape[1], weight.dtype, None, TokenRounding())
        quantized[name] = matrix
        model.write(name, Replacement(matrix.dense(), matrix.input_transform))
    exported = export.save("auto", model, tmp_path / "model", {}, {}, quantized)
    assert exported.treated == {*model.components}
    found = logits(compressor.load(exported.path), draw_tokens())
    assert torch.equal(found, model.logits(draw_tokens(), TOKENS))
    assert torch.equal(found, read_by_transformers({exported.path: ""})[exported.path]["logits"])


def set_inputs(**values: object) -> Callable[[dict[str, Any]], None]:
    def change(described: dict[str, Any]) -> None:
        described["config_groups"]["group_0"]["input_activations"].update(values)

    return change


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """int8 × int8 by row."""
    return export_treated(tmp_path_factory.mktemp("whole"), lambda index, component: Int8(activations=TOKEN))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_inputs(num_bits=4), "treats in `group_0`, which is `int-quantized`, the `input_.* {'num_bits': 4.*; only"),
        (set_inputs(type="float"), "the `input_activations` {'num_bits': 8, 'type': 'float'"),
        (set_inputs(symmetric=False), "'symmetric': False"),
        (set_inputs(strategy="tensor"), "'strategy': 'tensor'"),
        (set_inputs(dynamic=False), "'dynamic': False"),
        (set_inputs(dynamic="local"), "'dynamic': 'local'"),
        (set_inputs(group_size=16), "'group_size': 16"),
        (set_inputs(scale_dtype="torch.float32"), "'scale_dtype': 'torch.float32'"),
        (set_group(input_activations=None), "the `input_activations` None"),
        (set_group(input_activations=True), "the `input_activations` True"),
        (set_group(output_activations={"num_bits": 8}), "treats in `group_0` the `output_activations`"),
        (set_group(format="pack-quantized"), "treats in `group_0`, which is `pack-quantized`, the `input_activations`"),
        (set_group(format="mixed-precision"), "has in `group_0` the `format` 'mixed-precision'"),
        (set_weights(symmetric=False), "has in `group_0` the scheme {.*'symmetric': False"),
        (set_weights(strategy="tensor"), r"`.*weight_scale` of `.*` must have the shape \[1\] by its config, got"),
    ],
)  # fmt: skip
def test_other_inputs_are_refused_in_a_line(
    whole: Shipped, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    folder = Path(shutil.copytree(whole.exported.path, tmp_path / "model"))
    describe(folder, change)
    with pytest.raises(ModelError, match=said) as caught:
        compressor.load(folder)
    assert_one_line(caught.value)


def test_the_format_of_the_whole_is_that_of_its_groups(whole: Shipped, tmp_path: Path) -> None:
    """As the first versions of the package wrote it."""
    folder = Path(shutil.copytree(whole.exported.path, tmp_path / "model"))
    describe(folder, lambda described: described["config_groups"]["group_0"].pop("format"))
    assert torch.equal(logits(compressor.load(folder), draw_tokens()), whole.model.logits(draw_tokens(), TOKENS))
    describe(folder, set_all(format="pack-quantized"))
    with pytest.raises(ModelError, match="which is `pack-quantized`, the `input_activations`"):
        compressor.load(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensor: tensor.float(), r"`.*_proj.weight` of `.*` must be torch.int8, got torch.float32; export"),
        (lambda tensor: tensor.bfloat16(), "must be torch.int8, got torch."),
        (lambda tensor: tensor.to(torch.int32), "must be torch.int8, got torch.int32"),
        (lambda tensor: tensor[1:], "must have the shape"),
        (lambda tensor: None, r"lacks 14 tensors that its config asks for, `.*_proj.weight` first"),
    ],
)
def test_bytes_that_are_none(
    whole: Shipped, tmp_path: Path, change: Callable[[Tensor], Tensor | None], said: str
) -> None:
    folder = Path(shutil.copytree(whole.exported.path, tmp_path / "model"))
    rewrite(folder, lambda name, tensor: change(tensor) if tensor.dtype == torch.int8 else tensor)
    with pytest.raises(ModelError, match=said) as caught:
        compressor.load(folder)
    assert_one_line(caught.value)
