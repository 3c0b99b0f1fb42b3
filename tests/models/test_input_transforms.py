"""Inputs that are treated: in every product of their component, in no other, and as long as the weight is there."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from compressor.compression.calibration import gather
from compressor.contracts import Plan, TokenRounding, Treatment
from compressor.errors import PlanError, PluginError
from compressor.models import Model, Replacement, load_model
from compressor.models.architectures import is_linear
from compressor.settings import ComponentSettings, DType, ModelSettings, SweepMode
from tests.support.calibrations import ALL, assert_same, explicit, overheard, run_plainly
from tests.support.estimates import make_bench
from tests.support.families import FAMILIES, ODDITIES, TWO, USUAL, VOCABULARY, each, save_checkpoint
from tests.support.gradients import draw_tokens, explicit_gradients, walk_gradients
from tests.support.prefetch import settle
from tests.support.slow import rarely
from tests.support.snapshots import is_unchanged, snapshot
from tests.support.sweeps import assert_same_bits, make_sweep, open_engine, score_both
from tests.support.trial_weights import MaskedWeights, mask

EVERY_FAMILY = each(FAMILIES | ODDITIES)
SERIAL = TokenRounding(4)


def load(family: str, folder: Path, components: ComponentSettings | None = None, **options: object) -> Model:
    save_checkpoint(family, folder, **options)  # type: ignore[arg-type]
    return load_model(ModelSettings(path=str(folder)), components)


def list_treatable(model: Model) -> list[str]:
    return [name for name in model.components if not name.endswith("dt_proj")]


def scale(factors: Tensor, inputs: Tensor) -> Tensor:
    return inputs * factors


def draw_factors(width: int, seed: int) -> Tensor:
    """Powers of two, with which a product has the same bits wherever they are multiplied in."""
    return 2.0 ** torch.randint(-2, 3, (width,), generator=torch.Generator().manual_seed(seed))


def make_scaled(model: Model, names: list[str]) -> tuple[dict[str, Replacement], dict[str, Tensor]]:
    """x D Wᵀ twice: with D in the inputs, and in the weight."""
    inside, outside = {}, {}
    for seed, name in enumerate(names):
        weight = model.read(name)
        factors = draw_factors(weight.shape[1], seed)
        inside[name], outside[name] = Replacement(weight, partial(scale, factors)), weight * factors
    return inside, outside


def say(model: Model, weights: dict[str, Replacement] | dict[str, Tensor], tokens: Tensor) -> Tensor:
    with model.swapped(weights):
        return model.logits(tokens, tokens.shape[1])


@contextmanager
def alone_with_experts(model: Model) -> Iterator[None]:
    """Where experts are, a fused kernel adds up in another order than what multiplies them one by one."""
    before = model.network.get_experts_implementation()
    model.network.set_experts_implementation("eager")
    yield
    model.network.set_experts_implementation(before)


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_treat_reaches_every_product_of_its_component_and_no_other(tmp_path: Path, family: str) -> None:
    """Each component alone, some together, all: what scales inputs is the same as what scales columns, to the bit."""
    model, tokens = load(family, tmp_path), draw_tokens(2)
    names, rng = list_treatable(model), np.random.default_rng(0)
    some = [[str(name) for name in rng.choice(names, len(names) // 2, replace=False)] for _ in range(3)]
    with alone_with_experts(model):
        own, changed = model.logits(tokens, tokens.shape[1]), 0
        for chosen in [*([name] for name in names), *some, names]:
            inside, outside = make_scaled(model, chosen)
            found, expected = say(model, inside, tokens), say(model, outside, tokens)
            assert torch.equal(found, expected), chosen
            changed += not torch.equal(found, own)
        assert changed > len(names) / 2


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3", "mixtral", "bloom"])
@pytest.mark.parametrize("dtype", [DType.float32, DType.bfloat16])
def test_products_of_integers_are_what_a_module_gives(tmp_path: Path, family: str, dtype: DType) -> None:
    """A whole linear module against integers that are multiplied and added up in int64, then scaled in float64."""
    save_checkpoint(family, tmp_path, dtype=getattr(torch, dtype.value))
    model = load_model(ModelSettings(path=str(tmp_path), dtype=dtype))
    tokens, checked = draw_tokens(2), 0
    model.check_transformable(model.weight_views)  # now, for it runs the model
    for name, weight_view in model.weight_views.items():
        if (
            not is_linear(weight_view.owner)
            or weight_view.view().numel() != weight_view.parameter.numel()
            or weight_view.owner.bias is not None
        ):
            continue
        weight = model.read(name)
        scales = weight.double().abs().amax(1, keepdim=True) / 127
        integers = (weight.double() / scales).round()
        calls: list[tuple[Tensor, Tensor]] = []
        handle = weight_view.owner.register_forward_hook(lambda _, x, y, calls=calls: calls.append((x[0], y)))
        say(model, {name: Replacement((scales * integers).to(weight.dtype), TokenRounding())}, tokens)
        handle.remove()
        for inputs, outputs in calls:
            steps = inputs.abs().amax(-1, keepdim=True) / 127.5  # a scale is rounded as its dtype wants
            rounded = (inputs / steps).round().clamp(-128, 127).long()
            found = (rounded @ integers.long().mT).double() * steps.double() * scales.mT
            error = (found - outputs.double()).abs().max() / found.abs().max()
            assert error <= (1e-6 if dtype is DType.float32 else 2e-2), name
            checked += 1
    assert checked or family in ("gpt2", "bloom")  # these have a bias everywhere


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_a_swap_leaves_no_trace(tmp_path: Path, family: str) -> None:
    model, tokens = load(family, tmp_path), draw_tokens(2)
    before, own = snapshot(model), model.logits(tokens, 5)
    forwards = {module: module.__dict__.get("forward") for module in model.network.modules()}
    names = list_treatable(model)
    with (
        pytest.raises(RuntimeError, match="inside"),
        model.swapped({names[0]: Replacement(model.read(names[0]), SERIAL)}),
    ):
        with model.swapped({name: Replacement(model.read(name), SERIAL) for name in names}):
            assert not torch.equal(model.logits(tokens, 5), own)
            assert model.input_transforms.find(names[-1]) is SERIAL
        assert model.input_transforms.find(names[-1]) is None and model.input_transforms
        raise RuntimeError("inside")
    assert not model.input_transforms and is_unchanged(model, before)
    assert forwards == {module: module.__dict__.get("forward") for module in model.network.modules()}
    assert torch.equal(model.logits(tokens, 5), own)


def test_what_is_written_stays_until_something_else_is(tmp_path: Path) -> None:
    """A mere weight in its place leaves inputs as they are, for a while or for good."""
    model, tokens = load("phi3", tmp_path), draw_tokens(2)
    own, name = model.logits(tokens, 5), "model.layers.0.self_attn.qkv_proj:k"
    weight = model.read(name)
    model.write(name, Replacement(weight, SERIAL))
    kept = model.logits(tokens, 5)
    assert not torch.equal(kept, own)
    assert torch.equal(say(model, {name: weight}, tokens)[:, -5:], own)
    assert torch.equal(model.logits(tokens, 5), kept)
    model.write(name, weight)
    assert not model.input_transforms and torch.equal(model.logits(tokens, 5), own)


def treat(seed: int, bits: int | None = SERIAL.bits) -> Treatment:
    """A fifth of the weights becomes zero; with `bits` the inputs are rounded."""
    return mask(seed, 0.2, bits)


def make_treated(model: Model, name: str, seed: int) -> Replacement:
    return MaskedWeights(model).make(name, treat(seed))


def make_trials(model: Model, seed: int, several: int = 8, every: int = 1) -> list[Plan]:
    """Each `every`-th component alone, with and without treated inputs, some at random, all; alike at first too."""
    rng, names = np.random.default_rng(seed), list_treatable(model)
    kinds = [treat(kind, bits) for kind, bits in enumerate((None, SERIAL.bits, 3))]
    plans = [{name: 1} for name in names[::every]]
    for _ in range(several):
        chosen = rng.choice(names, rng.integers(1, len(names) + 1), replace=False)
        plans.append({str(name): int(rng.integers(3)) for name in chosen})
        plans.append({**plans[-1], str(rng.choice(names)): 1})
    plans += [dict.fromkeys(names, 1), {}]
    return [{name: kinds[kind] for name, kind in plan.items()} for plan in plans]


@pytest.mark.parametrize("family", each(FAMILIES | ODDITIES, TWO))
def test_the_engine_scores_as_by_plain_passes(tmp_path: Path, family: str) -> None:
    model = load(family, tmp_path)
    evaluator, before = make_sweep(model), snapshot(model)
    exact, plain = score_both(evaluator, make_trials(model, 0))
    assert_same_bits(exact, plain)
    assert is_unchanged(model, before) and not model.input_transforms
    assert not np.array_equal(exact[0]["kl"], exact[-1]["kl"])


def is_rare(family: str, streams: bool, metrics: list[str]) -> bool:
    """Llama has each engine once, with another choice of metrics, and mixtral the streaming one."""
    return family not in TWO or streams != (metrics == ["fdtm"]) or (family == "mixtral" and not streams)


@pytest.mark.parametrize(
    ("family", "streams", "metrics"),
    [
        pytest.param(*case, marks=pytest.mark.slow if is_rare(*case) else ())
        for case in product([*USUAL, "gpt_oss"], (False, True), (["fdtm", "kl"], ["fdtm"]))
    ],
)
def test_and_on_a_model_that_treats_inputs_already(
    tmp_path: Path, family: str, streams: bool, metrics: list[str]
) -> None:
    """Leading tokens alone are counted in whole passes too: what is rounded hangs on the last bit."""
    model = load(family, tmp_path, **({"n_layer": 3} if family == "gpt2" else {"num_hidden_layers": 3}))
    evaluator = make_sweep(model)
    for seed, name in enumerate(list_treatable(model)[::3]):
        model.write(name, make_treated(model, name, seed))
    evaluator.engine = open_engine(evaluator, streams)
    exact, plain = score_both(evaluator, make_trials(model, 1, several=4, every=2), names=metrics)
    assert_same_bits(exact, plain)


@pytest.mark.parametrize("family", ["gpt2", *rarely(["llama", "gpt_oss"])])
def test_a_streamed_model_scores_the_same(tmp_path: Path, family: str) -> None:
    save_checkpoint(family, tmp_path)
    models = [load_model(ModelSettings(path=str(tmp_path), stream=stream)) for stream in (False, True)]
    answers = []
    for model in models:
        name = list_treatable(model)[0]
        evaluator = make_sweep(model)
        model.write(name, make_treated(model, name, 5))
        answers.append(evaluator.score_all(make_trials(model, 2)))
        assert evaluator.mode is SweepMode.exact
    assert_same_bits(*answers)


@pytest.mark.parametrize("family", ["gpt2", *rarely(["llama", "gpt_oss"])])
def test_layers_that_come_and_go_treat_their_inputs(tmp_path: Path, family: str) -> None:
    """As on a GPU: a layer's weights lie elsewhere while it is on the device."""
    save_checkpoint(family, tmp_path)
    whole, streamed = (load_model(ModelSettings(path=str(tmp_path), stream=stream)) for stream in (False, True))
    settle(streamed)
    tokens, names = draw_tokens(2), list_treatable(whole)
    for name in names:
        product = make_treated(whole, name, 0)
        assert torch.equal(say(streamed, {name: product}, tokens), say(whole, {name: product}, tokens)), name
    for model in (whole, streamed):
        model.write(names[0], make_treated(whole, names[0], 0))
        model.write(names[-1], make_treated(whole, names[-1], 0))
    assert torch.equal(streamed.logits(tokens, 5), whole.logits(tokens, 5))


def test_weights_that_are_in_two_components_are_treated_as_the_last_one_wants(tmp_path: Path) -> None:
    model = load("llama", tmp_path, num_hidden_layers=4)
    layers = model.network.model.layers
    layers[2].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    first, other = (f"model.layers.{index}.mlp.up_proj" for index in (0, 2))
    weight, tokens = model.read(first), draw_tokens(2)
    own, treated = (say(model, {first: Replacement(weight, treat)}, tokens) for treat in (None, SERIAL))
    assert not torch.equal(own, treated)
    for last, expected in ((None, own), (SERIAL, treated)):
        both = {first: Replacement(weight, TokenRounding(2)), other: Replacement(weight, last)}
        assert torch.equal(say(model, both, tokens), expected)
    plans = [[first], [other], [first, other], [other, first], [first, "model.layers.1.mlp.up_proj"]]
    exact, plain = score_both(make_sweep(model), [dict.fromkeys(plan, treat(1)) for plan in plans])
    assert_same_bits(exact, plain)


def test_the_tied_head_is_treated_and_what_it_embeds_is_not(tmp_path: Path) -> None:
    model = load("qwen2", tmp_path, ComponentSettings(include=["embed"]))
    tokens, (name,) = draw_tokens(2), model.components
    inputs: list[Tensor] = []
    model.check_transformable([name])  # now, for it runs the model
    head = model.network.get_output_embeddings()
    handle = head.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    found = say(model, {name: Replacement(model.read(name), SERIAL)}, tokens)
    own = model.logits(tokens, tokens.shape[1])
    handle.remove()
    assert torch.equal(inputs[0], inputs[1])
    assert torch.equal(found, torch.nn.functional.linear(SERIAL(inputs[0]), head.weight))
    assert not torch.equal(found, own)


def test_inputs_that_cannot_be_treated_are_one_line(tmp_path: Path) -> None:
    """Mamba takes the weight of dt_proj out of its module; an embedding that is not tied has no inputs."""
    for family, name in (("mamba", "backbone.layers.0.mixer.dt_proj"), ("llama", "model.embed_tokens")):
        settings = ComponentSettings(include=["embed", "proj"])
        model = load(family, tmp_path / family, settings)
        weight, before = model.read(name), snapshot(model)
        for action in (
            lambda: model.write(name, Replacement(weight * 2, SERIAL)),  # noqa: B023 - called in this turn
            lambda: say(model, {name: Replacement(weight * 2, SERIAL)}, draw_tokens(1)),  # noqa: B023
        ):
            with pytest.raises(PlanError, match=f"^the inputs of `{name}` cannot be treated") as caught:
                action()
            assert "\n" not in str(caught.value)
        assert is_unchanged(model, before) and not model.input_transforms
        model.write(name, weight)  # without a treat it is a weight like any other


@pytest.mark.parametrize("family", ["llama", "phi3", "gpt2", "mixtral"])
def test_data_are_of_inputs_as_they_come(tmp_path: Path, family: str) -> None:
    """Each token once, before it is treated; what lies below treats its inputs, which changes them."""
    bench = make_bench(family, tmp_path)
    names = list_treatable(bench.model)
    before = gather(bench.model, bench.reference, names, ALL).read(names[-1], ALL)
    for seed, name in enumerate(names[::2]):
        bench.model.write(name, Replacement(bench.model.read(name), TokenRounding(4 + seed % 2)))
    found = gather(bench.model, bench.reference, names, ALL)
    with overheard(bench.model) as heard:
        run_plainly(bench)
    for name, inputs in heard.items():
        assert_same(found.read(name, ALL), explicit(inputs, bench.model.components[name].shape[1]), name, 1e-4)
    after = found.read(names[-1], ALL)
    assert before is not None and after is not None and not torch.equal(before["absmax"], after["absmax"])


@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral", *rarely(["gpt2", "bloom"])])
def test_gradients_are_those_of_weights_that_multiply_treated_inputs(tmp_path: Path, family: str) -> None:
    """A treat hands gradients on as they are; by autograd on the parameter, and by the walk."""
    model, tokens = load(family, tmp_path), draw_tokens(3)
    names = list_treatable(model)
    plain = walk_gradients(model, names, tokens)
    for seed, name in enumerate(names[::2]):
        model.write(name, Replacement(model.read(name), TokenRounding(3 + seed % 3)))
    found = walk_gradients(model, names, tokens)
    for name in names:
        expected = explicit_gradients(model, name, tokens)
        assert torch.allclose(found[name], expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())), name
    assert not torch.allclose(found[names[0]], plain[names[0]], rtol=1e-3)
    assert VOCABULARY == model.vocabulary


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tokens_are_rounded_as_the_reader_of_packed_models_rounds_them(dtype: torch.dtype) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    lifecycle = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    draw = torch.Generator().manual_seed(0)
    inputs = torch.randn(4, 50, 33, generator=draw) * 10.0 ** torch.randint(-3, 3, (4, 50, 1), generator=draw)
    inputs[0, 0], inputs[1, 1, 5:] = 0, 0
    inputs = inputs.to(dtype)
    for bits in (8, 4):
        args = quantization.QuantizationArgs(num_bits=bits, type="int", symmetric=True, strategy="token", dynamic=True)
        scales, zeros = helpers.compute_dynamic_scales_and_zp(inputs, args, torch.nn.Module())
        expected = lifecycle.fake_quantize(inputs, scales, zeros, args)
        assert torch.equal(TokenRounding(bits)(inputs), expected)
        assert len(expected[2, 2].unique()) > 4


def fail(inputs: Tensor) -> Tensor:
    raise SystemExit(0)


BROKEN_TRANSFORMS: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "exit": (fail, f"^function `{__name__}.fail` failed in `input_transform` on {{name}}: SystemExit: 0"),
    "nothing": (lambda inputs: None, "gave NoneType; a tensor"),
    "shape": (lambda inputs: inputs[..., :-1], r"the inputs are \(2, 6, \d+\) torch.float32"),
    "dtype": (lambda inputs: inputs.half(), "torch.float16, torch.strided, on cpu; the inputs are"),
    "device": (lambda inputs: inputs.to("meta"), "on meta; the inputs are"),
    "layout": (lambda inputs: inputs.to_sparse(), "torch.sparse_coo, on cpu; the inputs are"),
    "in place": (lambda inputs: inputs.mul_(2), "changed its inputs, which other components read too; work on a copy"),
}


@pytest.mark.parametrize("case", BROKEN_TRANSFORMS)
@pytest.mark.parametrize("family", ["llama", "qwen3_moe"])
def test_a_broken_transform_is_one_line_and_leaves_the_model(case: str, family: str, tmp_path: Path) -> None:
    model = load(family, tmp_path)
    name, before = list_treatable(model)[0], snapshot(model)
    transform, message = BROKEN_TRANSFORMS[case]
    with pytest.raises(PluginError, match=message.format(name=re.escape(name))) as caught:
        say(model, {name: Replacement(model.read(name), transform)}, torch.ones(2, 6, dtype=torch.long))
    assert str(caught.value).isprintable() and name in str(caught.value)
    assert is_unchanged(model, before) and not model.input_transforms
