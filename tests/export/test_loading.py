"""Packed models run as they were scored: against the scored network, transformers' own loading, and float64."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn

import compressor
from compressor.contracts import CompressedWeight, Context, QuantizedMatrix, Scheme, Strategy
from compressor.errors import ConfigError, ModelError, OutputError
from compressor.export.compressed_tensors import unpack_integers
from compressor.export.loading import hf_quantizer, packed_linear
from compressor.settings import ComponentSettings, DType, ExportSettings
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Activations, Granularity, Int8
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.uniform import Uniform
from tests.support.exports import TOKENS, Shipped, draw_tokens, export_treated, mix, read_by_transformers
from tests.support.families import FAMILIES, USUAL, each, save_checkpoint
from tests.support.hostile_models import (
    REMOTE_CODE,
    assert_one_line,
    describe,
    edit_config,
    rewrite,
    set_all,
    set_group,
    set_weights,
)
from tests.support.loaded_models import count_bytes, count_computed, generate, logits
from tests.support.runs import make_settings, run
from tests.support.warm_processes import run_project

CASES = [*each(FAMILIES), "llama in bfloat16"]
OFTEN = [*USUAL, "qwen3", "llama in bfloat16"]
SELDOM = [family for family in FAMILIES if family not in OFTEN]
DENSE = ("gpt2", "mixtral", "qwen3_moe", "falcon")


class Exports(dict[str, Shipped]):
    """Every family with treatments of every sort, and what plain transformers says of the folder in its own dtype.

    They are made when one is asked for: those that are asked for often together, and the others together.
    """

    def __init__(self, home: Path) -> None:
        super().__init__()
        self.home = home

    def __missing__(self, wanted: str) -> Shipped:
        for case in OFTEN if wanted in OFTEN else SELDOM:
            dtype = DType.bfloat16 if "bfloat16" in case else DType.float32
            self[case] = export_treated(self.home / case, mix, case.partition(" ")[0], dtype)
        made = [one for one in self.values() if not one.said]
        said = read_by_transformers({one.exported.path: "" for one in made})
        for one in made:
            one.said.update(said[one.exported.path])
        return self[wanted]


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    return Exports(tmp_path_factory.mktemp("shipped"))


@pytest.mark.parametrize("case", CASES)
def test_a_packed_model_says_what_was_scored_and_what_transformers_says(shipped: dict[str, Shipped], case: str) -> None:
    one = shipped[case]
    network = compressor.load(one.exported.path)
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
    network, schemes = compressor.load(one.exported.path), list_schemes(one)
    modules = {
        path: module for path, module in network.named_modules() if isinstance(module, packed_linear.PackedLinear)
    }
    assert {path: module.scheme for path, module in modules.items()} == schemes
    assert bool(schemes) == (case not in DENSE)
    for path, module in modules.items():
        for suffix, tensor in module.state_dict().items():
            if suffix != "bias":
                assert torch.equal(tensor, one.stored[f"{path}.{suffix}"].to(tensor.dtype)), (path, suffix)
                assert tensor.dtype == one.stored[f"{path}.{suffix}"].dtype or suffix == "weight_scale"
    floats, integers = (
        [tensor for tensor in one.stored.values() if tensor.is_floating_point() == wanted] for wanted in (True, False)
    )
    expected = sum(tensor.nbytes for tensor in integers)
    expected += sum(tensor.numel() for tensor in floats) * network.dtype.itemsize
    assert count_bytes(network) == expected + count_computed(one.model.network)


def list_schemes(one: Shipped) -> dict[str, Scheme]:
    """As config.json says them, read by the format's own package."""
    if "quantization_config" not in one.config:
        return {}
    from compressed_tensors.quantization import QuantizationConfig

    groups = QuantizationConfig.model_validate(one.config["quantization_config"]).config_groups.values()
    return {
        target: Scheme(weights.num_bits, Strategy(weights.strategy), weights.group_size or 0, weights.symmetric)
        for group in groups
        for weights in [group.weights]
        for target in group.targets
    }


def test_a_model_of_four_bits_takes_a_quarter_of_the_bytes(tmp_path: Path) -> None:
    one = export_treated(
        tmp_path, lambda index, component: Int4(group=64), dtype=DType.bfloat16, hidden_size=256, intermediate_size=512
    )
    matrices = sum(component.parameters for component in one.model.components.values())
    rest = one.model.base_parameters - matrices
    network = compressor.load(one.exported.path)
    assert network.dtype == torch.bfloat16
    shapes = 16 * len(one.model.components)
    held = count_bytes(network) - count_computed(one.model.network)
    assert held - shapes == 2 * rest + matrices * (4 + 16 / 64) / 8
    assert held == sum(tensor.nbytes for tensor in one.stored.values())


def test_in_another_dtype_it_is_still_what_transformers_says(shipped: dict[str, Shipped], tmp_path: Path) -> None:
    folders = {
        Path(shutil.copytree(shipped[case].exported.path, tmp_path / f"{case} {dtype}")): dtype
        for case in ("llama", "gemma3", "phi3")
        for dtype in ("float32", "bfloat16", "float16")
    }
    said = read_by_transformers(folders)
    for folder, dtype in folders.items():
        network = compressor.load(folder, dtype=getattr(torch, dtype) if dtype == "float16" else dtype)
        assert str(network.dtype) == f"torch.{dtype}"
        assert torch.equal(logits(network, draw_tokens()), said[folder]["logits"]), folder.name


def test_no_weight_is_made_before_it_is_used(shipped: dict[str, Shipped], monkeypatch: pytest.MonkeyPatch) -> None:
    """The skeleton has no memory, and loading decodes nothing."""
    replaced = []

    def watch(network: nn.Module, path: str, scheme: Scheme) -> packed_linear.PackedLinear:
        assert all(parameter.is_meta for parameter in network.parameters())
        replaced.append(path)
        return replace(network, path, scheme)

    def fail(*arguments: object) -> Tensor:
        raise AssertionError("a weight is made")

    replace = hf_quantizer.replace_linear
    monkeypatch.setattr(hf_quantizer, "replace_linear", watch)
    with monkeypatch.context() as patch:
        patch.setattr(QuantizedMatrix, "dense", fail)
        network = compressor.load(shipped["llama"].exported.path)
        assert replaced == 2 * list(list_schemes(shipped["llama"]))  # also before shapes are compared
        with pytest.raises(AssertionError, match="a weight is made"):
            logits(network, draw_tokens())
    assert torch.equal(logits(network, draw_tokens()), shipped["llama"].said["logits"])


def test_the_package_of_the_format_is_not_needed(shipped: dict[str, Shipped], monkeypatch: pytest.MonkeyPatch) -> None:
    one = shipped["qwen3"]
    for name in [name for name in sys.modules if name.partition(".")[0] == "compressed_tensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(ImportError):
        import compressed_tensors  # noqa: F401
    assert torch.equal(logits(compressor.load(one.exported.path), draw_tokens()), one.said["logits"])


def test_a_run_is_generated_again_token_for_token(tmp_path: Path) -> None:
    """From `compressor run` to the tokens that its report counts."""
    settings = make_settings(Uniform(), Int8(), export=ExportSettings(format="compressed-tensors"))
    run(tmp_path, settings)
    with safetensors.safe_open(tmp_path / "reference.safetensors", "pt") as file:
        tokens, prefix = file.get_tensor("tokens"), int(file.metadata()["prefix_tokens"])
    lines = [json.loads(line) for line in (tmp_path / "sequences.jsonl").read_text().splitlines()]
    network = compressor.load(tmp_path / "model", dtype="float32")
    network.generation_config = transformers.GenerationConfig(max_new_tokens=tokens.shape[1] - prefix, pad_token_id=0)
    assert any(isinstance(module, packed_linear.PackedLinear) for module in network.modules())
    said = network.generate(tokens[:, :prefix], attention_mask=torch.ones_like(tokens[:, :prefix]))
    counted = (said == tokens)[:, prefix:].long().cumprod(1).sum(1)
    assert counted.tolist() == [line["fdtm"] for line in lines]


def test_what_the_quickstart_shows_runs_as_it_stands(tmp_path: Path) -> None:
    """Both snippets, on a run whose export is packed."""
    text = (Path(__file__).parents[2] / "docs" / "quickstart.md").read_text(encoding="utf-8")
    snippets = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(snippets) == 2 and "compressor.load(" in snippets[0] and "assert agrees ==" in snippets[1]
    settings = make_settings(Uniform(), Int8(activations=Activations.token), export=ExportSettings())
    record = run(tmp_path / "out", settings)
    assert record.export is not None and record.export.packed
    outputs = []
    for snippet in snippets:
        command = [sys.executable, "-c", snippet]
        done = run_project(command, tmp_path)
        assert done.returncode == 0, done.stderr[-2000:]
        outputs.append(done.stdout)
    assert "Once upon a time" in outputs[0]


def test_the_lm_head_is_packed_too(tmp_path: Path) -> None:
    one = export_treated(tmp_path, lambda index, component: Int8(), components=ComponentSettings(include=["lm_head"]))
    network = compressor.load(one.exported.path)
    assert type(network.lm_head) is packed_linear.PackedLinear
    assert torch.equal(logits(network, draw_tokens()), one.model.logits(draw_tokens(), TOKENS))


def test_a_family_that_transformers_does_not_load_packed(tmp_path: Path) -> None:
    one = export_treated(tmp_path, lambda index, component: Int4(group=16), "gpt_bigcode")
    assert one.exported.packed
    network = compressor.load(one.exported.path)
    assert torch.equal(logits(network, draw_tokens()), one.model.logits(draw_tokens(), TOKENS))


@dataclass
class Shifted(Int4):
    """Integers and zero points of any number of bits, drawn by lot, in groups or one for a row."""

    bits: int = 4

    def compress(self, weight: Tensor, amount: float, context: Context) -> CompressedWeight:
        draw = torch.Generator().manual_seed(self.bits)
        (out, width), half = weight.shape, 1 << self.bits - 1
        shape = (out, max(1, width // self.group))
        integers = torch.randint(-half, half, (out, width), generator=draw, dtype=torch.int8)
        scales = torch.rand(shape, generator=draw).to(torch.bfloat16) / half
        zeros = torch.randint(-half, half, shape, generator=draw, dtype=torch.int8)
        return QuantizedMatrix(integers, scales, self.bits, self.group, torch.float32, zeros)


@pytest.mark.parametrize("bits", [1, 3, 4, 7, 8])
@pytest.mark.parametrize("group", [16, 64])
def test_zero_points_are_read_as_they_are_packed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int, group: int
) -> None:
    """Of all numbers of bits, by a float32 formula of another module; no run writes them with today's package."""
    monkeypatch.setattr("compressor.export.compressed_tensors.reads_zeros", lambda: True)
    one = export_treated(tmp_path, lambda index, component: Shifted(group=group, bits=bits))
    assert len([name for name in one.stored if name.endswith("weight_zero_point")]) == len(one.model.components)
    network = compressor.load(one.exported.path, dtype="float32")
    assert torch.equal(logits(network, draw_tokens()), one.model.logits(draw_tokens(), TOKENS))


@pytest.mark.parametrize("bits", range(1, 9))
def test_numbers_are_unpacked_from_a_string_of_bits(bits: int) -> None:
    """Rows of every length, by whole numbers of Python, and packed by the format's own package."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    draw = torch.Generator().manual_seed(bits)
    for count in (1, 3, 8, 31, 32, 33, 96, 101):
        numbers = torch.randint(0, 1 << bits, (3, count), generator=draw)
        strings = [sum(number << bits * index for index, number in enumerate(row)) for row in numbers.tolist()]
        words = -(-count * bits // 32)
        raw = b"".join(string.to_bytes(4 * words, "little") for string in strings)
        packed_here = torch.frombuffer(bytearray(raw), dtype=torch.int32).view(3, words)
        assert torch.equal(packed_here, pack_to_int32((numbers - (1 << bits - 1)).to(torch.int8), bits))
        found = unpack_integers(packed_here, bits, count)
        assert found.dtype == torch.int8 and torch.equal(found.long() + (1 << bits - 1), numbers)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    """A bfloat16 model of 4 and 8 bits, with scales by row, by matrix and in groups."""
    sorts = (Int4(group=32), Int8(), Int8(granularity=Granularity.tensor), Rtn(bits=[4], group=128), Int8(group=32))
    return export_treated(
        tmp_path_factory.mktemp("wide"), lambda index, component: sorts[index % len(sorts)], dtype=DType.bfloat16,
        hidden_size=64, intermediate_size=128,
    )  # fmt: skip


def test_kernels_that_were_removed_warn_once_and_load_the_exact_model(
    wide: Shipped, recwarn: pytest.WarningsRecorder
) -> None:
    exact = compressor.load(wide.exported.path, kernels="exact")
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r'^`kernels="torch"` was removed from `compressor\.load`; [^\n]+$') as caught:
        network = compressor.load(wide.exported.path, kernels="torch")
    assert len(caught) == 1 and caught[0].filename == __file__
    for tokens in (draw_tokens()[:1], draw_tokens()):
        wanted = wide.model.logits(tokens, TOKENS)
        assert torch.equal(logits(network, tokens), wanted) and torch.equal(logits(exact, tokens), wanted)


def test_a_packed_model_is_not_saved_again(wide: Shipped, tmp_path: Path) -> None:
    network = compressor.load(wide.exported.path)
    with pytest.raises(OutputError, match=r"cannot be saved again; copy its folder `.*model` instead") as caught:
        network.save_pretrained(tmp_path / "again")
    assert_one_line(caught.value)
    assert not (tmp_path / "again").exists()


def test_a_dense_folder_is_loaded_and_saved_as_ever(tmp_path: Path) -> None:
    folder = save_checkpoint("qwen2", tmp_path / "dense", torch.bfloat16)
    network = compressor.load(folder)
    own = transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert network.dtype == own.dtype == torch.bfloat16
    assert torch.equal(logits(network, draw_tokens()), logits(own.eval(), draw_tokens()))
    network.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(compressor.load(tmp_path / "again"), draw_tokens()), logits(network, draw_tokens()))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (set_all(quant_method="gptq"), "has the `quant_method` 'gptq'; only dense folders and `compressed-tensors` as"),
        (set_all(quantization_status="frozen"), "has the `quantization_status` 'frozen'"),
        (set_all(config_groups={}), "has the `config_groups` {}"),
        (set_all(config_groups={"a": 1}), "has a group `a` that is 1"),
        (set_all(kv_cache_scheme={"num_bits": 8}), "has a `kv_cache_scheme`"),
        (set_group(format="marlin-24"), "has in `group_0` the `format` 'marlin-24'"),
        (set_group(input_activations={"num_bits": 8}), "treats in `group_0`, which is `pack-quantized`, the `input_a"),
        (set_group(weights=None), "has in `group_0` the `weights` None"),
        (set_group(targets=[]), r"has in `group_0` the `targets` \[\]"),
        (set_group(targets=["Linear"]), "names `Linear`, but LlamaForCausalLM has nothing there"),
        (set_group(targets=["model.norm"]), "names `model.norm`, but LlamaForCausalLM has a LlamaRMSNorm there"),
        (set_group(targets=["model.layers.0.self_attn.k_proj"] * 2), "in two groups"),
        (set_group(format="int-quantized"), "treats in `group_0`, which is `int-quantized`, the `input_.*` None; only"),
        (set_group(output_activations={"num_bits": 8}), "treats in `group_0` the `output_activations`"),
        (set_weights(num_bits=16), "has in `group_0` the scheme {.*'num_bits': 16"),
        (set_weights(num_bits="4"), "has in `group_0` the scheme"),
        (set_weights(type="float"), "has in `group_0` the scheme {.*'float'"),
        (set_weights(strategy="block"), "has in `group_0` the scheme {.*'block'"),
        (set_weights(dynamic=True), "has in `group_0` the scheme"),
        (set_weights(actorder="group"), "has in `group_0` the scheme"),
        (set_weights(group_size=0), "has in `group_0` the scheme"),
        (set_weights(group_size=None), "has in `group_0` the scheme"),
        (set_weights(strategy="tensor", symmetric=False), "has in `group_0` the scheme"),
        (set_weights(group_size=48), "gives `.*` groups of 48, which must divide its width 64; correct config"),
        (set_weights(group_size=16), r"`.*weight_scale` of `.*` must have the shape \[\d+, 4\] by its config, got"),
        (set_weights(num_bits=8), r"`.*weight_packed` of `.*` must have the shape \[\d+, 16\] by its config, got"),
        (set_weights(symmetric=False), "lacks 3 tensors that its config asks for, `.*weight_zero_point` first"),
    ],
)  # fmt: skip
def test_whatever_is_not_read_is_refused_in_a_line(
    wide: Shipped, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    folder = Path(shutil.copytree(wide.exported.path, tmp_path / "model"))
    describe(folder, change)
    with pytest.raises(ModelError, match=said) as caught:
        compressor.load(folder)
    assert_one_line(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda name, tensor: tensor.flip(0) if name.endswith("up_proj.weight_shape") else tensor,
         r"`.*up_proj.weight_shape` of `.*` must be \[128, 64\] by its config, got \[64, 128\]"),
        (lambda name, tensor: tensor.long() if name.endswith("weight_packed") else tensor, "must be torch.int32, got"),
        (lambda name, tensor: tensor.float() if name.endswith("weight_packed") else tensor, "must be torch.int32, got"),
        *((lambda name, tensor, end=end: tensor.int() if name.endswith(end) else tensor,
           f"`.*{end}` of `.*` must be stored in floating point, got I32; .*, or export the model again")
          for end in ("weight_scale", "norm.weight", "embed_tokens.weight")),
        *((lambda name, tensor, end=end: tensor.to(torch.float8_e4m3fn) if name.endswith(end) else tensor,
           f"`.*{end}` of `.*` must be torch.int.*, got torch.float8_e4m3fn") for end in ("_shape", "_packed")),
        (lambda name, tensor: tensor[1:] if name.endswith("weight_packed") else tensor, "must have the shape"),
        (lambda name, tensor: None if name.endswith("weight_packed") else tensor, "lacks 14 tensors"),
        (lambda name, tensor: tensor * torch.inf if name.endswith("weight_scale") else tensor, "NaN or infinity"),
    ],
)  # fmt: skip
def test_tensors_that_are_not_what_the_config_says(
    wide: Shipped, tmp_path: Path, change: Callable[[str, Tensor], Tensor | None], said: str
) -> None:
    folder = Path(shutil.copytree(wide.exported.path, tmp_path / "model"))
    rewrite(folder, change)
    with pytest.raises(ModelError, match=said) as caught:
        compressor.load(folder)
    assert_one_line(caught.value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "head_dim", "num_key_value_heads"])
@pytest.mark.parametrize("packed", [False, True])
def test_shapes_are_compared_before_a_network_takes_memory(
    key: str, packed: bool, wide: Shipped, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(wide.exported.path if packed else wide.model.folder, tmp_path / "model"))
    edit_config(folder, **{key: 3 << 40})  # no machine has the memory
    with pytest.raises(ModelError, match=r"must have the shape \[.*\d{12}.*\] by its config, got \[|groups of 32"):
        compressor.load(folder)


def test_a_name_that_transformers_does_not_know(wide: Shipped, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wide.exported.path, tmp_path / "model"))
    edit_config(folder, hidden_act="boom")
    with pytest.raises(ModelError, match=r"^`hidden_act` of `.*` must be a name that transformers knows, got 'boom'"):
        compressor.load(folder)


def test_folders_that_hold_no_model(wide: Shipped, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wide.exported.path, tmp_path / "run" / "model"))
    (tmp_path / "empty").mkdir()
    refused = {
        tmp_path / "nowhere": "no such folder `.*nowhere`; give one that holds a model",
        folder / "config.json": "no such folder",
        tmp_path / "run": "`.*run` is the folder of a run; its model is `.*model`, give that",
        tmp_path / "empty": "has no `config.json`",
    }
    for path, said in refused.items():
        with pytest.raises(ModelError, match=said) as caught:
            compressor.load(path)
        assert_one_line(caught.value)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])
    with pytest.raises(ModelError, match="is corrupt or truncated"):
        compressor.load(str(folder))
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        compressor.load(str(folder))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kernels": "exakt"}, "unknown `kernels` `exakt`; did you mean `exact`?"),
        ({"dtype": "bfloat"}, "unknown `dtype` `bfloat`; did you mean `bfloat16`"),
        ({"dtype": torch.int8}, "unknown `dtype` `torch.int8`"),
        ({"folder": None}, "`folder` must be a path, got None; give a text or a pathlib.Path"),
        ({"folder": 3}, "`folder` must be a path, got 3"),
        ({"trust_remote_code": "no"}, "`trust_remote_code` must be True or False, got 'no'"),
        ({"device": None}, "`device` must be auto, cpu, cuda or cuda:1, got 'None'"),
        ({"device": "gpu"}, "`device` must be auto, cpu, cuda or cuda:1, got 'gpu'"),
        ({"device": "meta"}, "`device` must be auto, cpu, cuda or cuda:1, got 'meta'"),
        ({"device": "cuda:77"}, "`device` is cuda:77, and torch finds no such CUDA device; use cpu or auto"),
    ],
)
def test_arguments_are_checked(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")) as caught:
        compressor.load(**{"folder": tmp_path, **options})
    assert_one_line(caught.value)


def test_code_in_the_folder_runs_only_when_trusted(
    wide: Shipped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder = Path(shutil.copytree(wide.exported.path, tmp_path / "model"))
    (folder / "own.py").write_text(REMOTE_CODE)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    edit_config(folder, model_type="our_own", architectures=["OwnForCausalLM"], auto_map=classes)
    with pytest.raises(ModelError, match=r"brings its own code .* or `trust_remote_code=True` of `compressor\.load`"):
        compressor.load(folder)
    network = compressor.load(folder, trust_remote_code=True)
    assert type(network).__name__ == "OwnForCausalLM"
    assert torch.equal(logits(network, draw_tokens()), wide.model.logits(draw_tokens(), TOKENS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_a_gpu_every_module_makes_its_weight(wide: Shipped) -> None:
    network = compressor.load(wide.exported.path, device="cuda")
    for path, module in compressor.load(wide.exported.path, device="cpu").named_modules():
        if isinstance(module, packed_linear.PackedLinear):
            found = network.get_submodule(path).weight
            assert found.is_cuda and torch.equal(found.cpu(), module.weight)
    assert logits(network, draw_tokens().cuda()).shape == (3, TOKENS, 160)
