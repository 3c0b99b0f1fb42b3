"""Models whose inputs are integers run as they were scored, and by products of integers, against float64."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import compressor
from compressor import export
from compressor.contracts import Grid, Scheme, Strategy, TokenRounding
from compressor.errors import ModelError
from compressor.export.loading import packed_linear
from compressor.export.loading.load import choice, integers
from compressor.models import Product, load_model
from compressor.settings import DType, ModelSettings
from compressor_plugins.quantization.int8 import Activations, Int8
from tests.export.test_export import TOKENS, Shipped, draw_tokens, read_by_transformers
from tests.export.test_integer_inputs import choose
from tests.export.test_loading import (
    assert_one_line,
    count_bytes,
    count_computed,
    describe,
    export_treated,
    generate,
    logits,
    rewrite,
    set_all,
    set_group,
    set_weights,
)
from tests.support.families import save_checkpoint

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
    with one.model.treats.only(one.exported.treated):  # all of them, but for phi3 and opt
        assert torch.equal(found, one.model.logits(draw_tokens(), TOKENS))
    assert len(one.exported.treated) == len(one.model.treats.names) or case.startswith(("phi3", "opt"))
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


def test_a_folder_of_bytes_alone(whole: Shipped, monkeypatch: pytest.MonkeyPatch) -> None:
    """No weight is made of them before it is used."""
    one = whole
    assert one.config["quantization_config"]["format"] == "int-quantized"
    with monkeypatch.context() as patch:
        patch.delattr(packed_linear, "decode")
        network = compressor.load(one.exported.path)
        with pytest.raises(NameError, match="decode"):
            logits(network, draw_tokens())
    assert torch.equal(logits(network, draw_tokens()), one.model.logits(draw_tokens(), TOKENS))
    assert len(find_modules(network, packed_linear.ByteLinear)) == len(one.model.components)


def test_bytes_of_fewer_bits(tmp_path: Path) -> None:
    """As a plugin may have them: transformers reads such a folder, and so does `compressor.load`."""
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    model = load_model(ModelSettings(path=str(base)))
    grids: dict[str, Grid | None] = {}
    for name in model.components:
        weight = model.read(name)
        scales = weight.abs().amax(1, keepdim=True).bfloat16().float() / 8
        whole = (weight / scales).round().clamp(-8, 7).to(torch.int8)
        grid = grids[name] = Grid(whole, scales, 4, weight.shape[1], None, TokenRounding())
        model.write(name, Product(grid.decode(weight.dtype), grid.inputs))
    exported = export.save("auto", model, tmp_path / "model", {}, {}, grids)
    assert exported.treated == {*model.components}
    found = logits(compressor.load(exported.path), draw_tokens())
    assert torch.equal(found, model.logits(draw_tokens(), TOKENS))
    assert torch.equal(found, read_by_transformers({exported.path: ""})[exported.path]["logits"])


def make_bytes(
    strategy: Strategy, out: int, width: int, dtype: torch.dtype, bias: bool = False
) -> packed_linear.ByteLinear:
    """Every byte there is, by lot, and scales."""
    draw = torch.Generator().manual_seed(out * width)
    parameter = nn.Parameter(torch.randn(out, generator=draw).to(dtype), requires_grad=False) if bias else None
    scheme = Scheme(8, strategy, 16 if strategy is Strategy.group else 0, True, TokenRounding())
    module = packed_linear.ByteLinear(width, out, parameter, scheme)
    module.weight_scale = (torch.rand(module.weight_scale.shape, generator=draw) / 64 + 0.001).to(dtype)
    module.read_integers().random_(-128, 128, generator=draw)
    module.is_loaded = True
    return module


def multiply_by_hand(module: packed_linear.ByteLinear, inputs: Tensor) -> Tensor:
    """s_x s_w Σ q_x q_w + b in float64, where q_x is found number by number in the dtype of the inputs."""
    half = torch.tensor(127.5, dtype=inputs.dtype)
    answer = []
    for x in inputs.reshape(-1, inputs.shape[-1]):
        scale = x.abs().max() / half
        scale = scale if scale else torch.tensor(1.0, dtype=x.dtype)
        whole = torch.stack([number / scale for number in x]).round().clamp(-128, 127)
        sums = module.read_integers().double() @ whole.double()
        answer.append(sums * scale.double() * module.weight_scale.flatten().double())
    product = torch.stack(answer).view(*inputs.shape[:-1], module.out_features)
    return product if module.bias is None else product + module.bias.double()


SHAPES = [(40, 48), (33, 63), (1, 2), (7, 3), (129, 257)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("strategy", [Strategy.channel, Strategy.tensor])
@pytest.mark.parametrize("bias", [False, True])
def test_products_of_integers_are_exact_but_for_the_last_rounding(
    dtype: torch.dtype, strategy: Strategy, bias: bool
) -> None:
    draw = torch.Generator().manual_seed(5)
    for out, width in SHAPES:
        module = make_bytes(strategy, out, width, dtype, bias)
        made = choice.choose_kernel(module)
        assert isinstance(made, integers.IntegerLinear) and torch.equal(made.weight, module.weight)
        assert made.weight.dtype == dtype
        for rows in [(1,), (3,), (1, 1), (2, 8), (2, 40), (0,)]:
            inputs = torch.randn(*rows, width, generator=draw).to(dtype)
            if len(rows) == 2:
                inputs[0, 0] = 0  # a token of zeros
            found = made(inputs)
            assert found.shape == (*rows, out) and found.dtype == dtype
            if not inputs.numel():
                continue
            exact = multiply_by_hand(module, inputs)
            size = exact.abs() if module.bias is None else (exact - module.bias).abs() + module.bias.abs()
            number = torch.finfo(dtype)
            room = number.eps / 2 * exact.abs() + 2**-22 * size.double() + number.smallest_normal
            assert bool(((found.double() - exact).abs() <= room).all()), (out, width, rows)


def test_the_largest_sums_fit() -> None:
    """As many products of −128 and −128 as `WIDTHS` allows; a scale of 2 keeps float32 exact."""
    width = integers.WIDTHS.stop - 1
    module = make_bytes(Strategy.tensor, 2, width, torch.float32)
    module.read_integers().fill_(-128)
    made = choice.choose_kernel(module)
    assert isinstance(made, integers.IntegerLinear)
    sums = made.add_up(torch.full((1, width), -128, dtype=torch.int8))
    assert sums.tolist() == [[2**14 * width] * 2] and 2**14 * (width + 1) == 2**31


def test_products_of_integers_are_taken_only_where_they_are_right(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (
        make_bytes(Strategy.group, 32, 64, torch.bfloat16), make_bytes(Strategy.channel, 32, 1, torch.bfloat16),
        make_bytes(Strategy.channel, 1, integers.WIDTHS.stop, torch.bfloat16),
        make_bytes(Strategy.channel, 32, 64, torch.float64),
    ):  # fmt: skip
        assert choice.choose_kernel(module) is None
    module = make_bytes(Strategy.channel, 40, 64, torch.float32)
    multiply = torch._int_mm

    def cut_off(left: Tensor, right: Tensor) -> Tensor:
        """As instructions do that add up pairs in 16 bits, with inputs shifted by 128."""
        pairs = (left[:, :, None].int() + 128) * right.int()
        cut = pairs.view(len(left), -1, 2, right.shape[1]).sum(2).clamp(-(2**15), 2**15 - 1).sum(1)
        return (cut - 128 * right.int().sum(0)).int()

    assert choice.choose_kernel(module) is not None
    few = torch.ones(1, 64, dtype=torch.int8)
    assert torch.equal(cut_off(few, module.read_integers().T // 4), multiply(few, module.read_integers().T // 4))
    for wrong in (cut_off, lambda left, right: multiply(left, right) + (len(left) == 1)):
        monkeypatch.setattr(torch, "_int_mm", wrong)
        assert choice.choose_kernel(module) is None


def compare_outputs(module: nn.Module, other: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
    """The same up to the rounding of factors and sums."""
    (given,) = inputs
    size = nn.functional.linear(given.abs(), other.weight.abs())
    assert bool(((module(given) - outputs).abs() <= 4 * torch.finfo(given.dtype).eps * size).all())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_runs_by_products_of_integers(shipped: dict[str, Shipped], dtype: str) -> None:
    """Wherever there is no group. Modules differ by rounding, the model by a step of 1/127 where a number flips."""
    one = shipped["llama in float32"]
    exact, fast = (compressor.load(one.exported.path, dtype=dtype, kernels=name) for name in ("exact", "torch"))
    groups = {path for path, module in find_modules(exact, packed_linear.ByteLinear).items() if module.scheme.group}
    assert groups == find_modules(fast, packed_linear.ByteLinear).keys() and groups
    served = find_modules(fast, integers.IntegerLinear)
    assert served.keys() == find_modules(exact, packed_linear.ByteLinear).keys() - groups and len(served) > 3
    assert not any(module.training for module in fast.modules())
    assert count_bytes(find_modules(fast, integers.IntegerLinear)[min(served)]) == count_bytes(
        exact.get_submodule(min(served))
    )
    for path, module in served.items():
        exact.get_submodule(path).register_forward_hook(partial(compare_outputs, module))
    for tokens in (draw_tokens(), draw_tokens()[:1, :1]):
        found, wanted = logits(fast, tokens), logits(exact, tokens)
        assert 0 < float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())
    assert generate(fast, draw_tokens()).shape == one.said["generated"].shape


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
