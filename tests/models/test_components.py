"""Components: the right matrices under the right names, read and swapped without leaving a trace."""

from __future__ import annotations

import functools
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compressor.errors import CompressorError, ConfigError, ModelError, PlanError
from compressor.models import components
from compressor.models.components import find_components, find_layers
from compressor.models.weight_views import WeightView, swapped
from tests.support.families import FAMILIES, ODDITIES, VOCABULARY, each, make_network

ALL = each(FAMILIES | ODDITIES)
ATTENTION = each(family for family in FAMILIES | ODDITIES if family != "mamba")


def expect_attention(
    path: str, query: int = 32, key: int = 16, leaves: str = "qkvo"
) -> dict[str, tuple[str, int, int]]:
    shapes = {"q": ("query", query, 32), "k": ("key", key, 32), "v": ("value", key, 32), "o": ("output", 32, query)}
    return {f"{path}.{leaf}_proj": shapes[leaf] for leaf in leaves}


def expect_fused(path: str, output: str, key: int = 32) -> dict[str, tuple[str, int, int]]:
    """A fused matrix with the parts q, k, v, and the output matrix `output` beside it."""
    parent = path.rpartition(".")[0]
    return {
        f"{path}:q": ("query", 32, 32),
        f"{path}:k": ("key", key, 32),
        f"{path}:v": ("value", key, 32),
        f"{parent}.{output}": ("output", 32, 32),
    }


def expect_gated(path: str, inner: int = 48) -> dict[str, tuple[str, int, int]]:
    return {
        f"{path}.gate_proj": ("gate", inner, 32),
        f"{path}.up_proj": ("up", inner, 32),
        f"{path}.down_proj": ("down", 32, inner),
    }


def expect_plain(first: str, second: str, inner: int = 128) -> dict[str, tuple[str, int, int]]:
    return {first: ("fc_in", inner, 32), second: ("fc_out", 32, inner)}


def expect_experts(path: str, inner: int) -> dict[str, tuple[str, int, int]]:
    halves = {
        f"{path}.gate_up_proj:{expert}.{half}": (half, inner, 32) for expert in range(3) for half in ("gate", "up")
    }
    return halves | {f"{path}.down_proj:{expert}": ("down", 32, inner) for expert in range(3)}


LLAMA = expect_attention("self_attn") | expect_gated("mlp")
WIDE_HEADS = expect_attention("self_attn", query=64, key=32) | expect_gated("mlp")
FALCON_MLP = expect_plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")
GPT2 = expect_fused("attn.c_attn", "c_proj") | expect_plain("mlp.c_fc", "mlp.c_proj")
SEPARATE = expect_attention("attn", key=32, leaves="kvq") | {"attn.out_proj": ("output", 32, 32)}
FIRST_LAYER: dict[str, tuple[str, dict[str, tuple[str, int, int]]]] = {
    "llama": ("model.layers", LLAMA),
    "mistral": ("model.layers", LLAMA),
    "qwen2": ("model.layers", LLAMA),
    "cohere": ("model.layers", LLAMA),
    "qwen3": ("model.layers", WIDE_HEADS),
    "gemma2": ("model.layers", WIDE_HEADS),
    "gemma3": ("model.layers", WIDE_HEADS),
    "gpt2": ("transformer.h", GPT2),
    "gpt_bigcode": ("transformer.h", GPT2),
    "gpt_bigcode_grouped": ("transformer.h", GPT2 | expect_fused("attn.c_attn", "c_proj", key=8)),
    "codegen": ("transformer.h", expect_fused("attn.qkv_proj", "out_proj") | expect_plain("mlp.fc_in", "mlp.fc_out")),
    "gptj": ("transformer.h", SEPARATE | expect_plain("mlp.fc_in", "mlp.fc_out")),
    "opt": (
        "model.decoder.layers",
        expect_attention("self_attn", key=32, leaves="kvq")
        | {"self_attn.out_proj": ("output", 32, 32)}
        | expect_plain("fc1", "fc2", inner=48),
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        expect_fused("attention.query_key_value", "dense")
        | expect_plain("mlp.dense_h_to_4h", "mlp.dense_4h_to_h", inner=48),
    ),
    "phi3": (
        "model.layers",
        {"self_attn.o_proj": ("output", 32, 32)}
        | expect_fused("self_attn.qkv_proj", "o_proj", key=16)
        | {"mlp.gate_up_proj:gate": ("gate", 48, 32), "mlp.gate_up_proj:up": ("up", 48, 32)}
        | {"mlp.down_proj": ("down", 32, 48)},
    ),
    "mixtral": ("model.layers", expect_attention("self_attn") | expect_experts("mlp.experts", 48)),
    "gpt_oss": ("model.layers", expect_attention("self_attn") | expect_experts("mlp.experts", 48)),
    "qwen3_moe": (
        "model.layers",
        expect_attention("self_attn", query=64, key=32) | expect_experts("mlp.experts", 24),
    ),
    "qwen2_moe": (
        "model.layers",
        expect_attention("self_attn") | expect_experts("mlp.experts", 24) | expect_gated("mlp.shared_expert", 24),
    ),
    "llama4": (
        "model.layers",
        expect_attention("self_attn")
        | expect_experts("feed_forward.experts", 48)
        | expect_gated("feed_forward.shared_expert"),
    ),
    "granitemoeshared": (
        "model.layers",
        expect_attention("self_attn")
        | expect_experts("block_sparse_moe.experts", 48)
        | {"shared_mlp.input_linear:gate": ("gate", 24, 32), "shared_mlp.input_linear:up": ("up", 24, 32)}
        | {"shared_mlp.output_linear": ("down", 32, 24)},
    ),
    "dbrx": (
        "transformer.blocks",
        expect_fused("norm_attn_norm.attn.Wqkv", "out_proj", key=16)
        | {f"ffn.experts.mlp.w1:{expert}": ("gate", 48, 32) for expert in range(3)}
        | {f"ffn.experts.mlp.v1:{expert}": ("up", 48, 32) for expert in range(3)}
        | {f"ffn.experts.mlp.w2:{expert}": ("down", 32, 48) for expert in range(3)},
    ),
    "falcon": ("transformer.h", expect_fused("self_attention.query_key_value", "dense", key=8) | FALCON_MLP),
    "falcon_grouped": ("transformer.h", expect_fused("self_attention.query_key_value", "dense", key=16) | FALCON_MLP),
    "falcon_alibi": ("transformer.h", expect_fused("self_attention.query_key_value", "dense") | FALCON_MLP),
    "bloom": ("transformer.h", expect_fused("self_attention.query_key_value", "dense") | FALCON_MLP),
    "mpt": (
        "transformer.blocks",
        expect_fused("attn.Wqkv", "out_proj") | {"ffn.up_proj": ("up", 128, 32), "ffn.down_proj": ("down", 32, 128)},
    ),
    "modernbert_decoder": (
        "model.layers",
        expect_attention("attn", key=32, leaves="qkv")
        | {"attn.Wo": ("output", 32, 32), "mlp.Wi": ("Wi", 96, 32), "mlp.Wo": ("Wo", 32, 48)},
    ),
    "mamba": (
        "backbone.layers",
        {
            "mixer.in_proj": ("in_proj", 128, 32),
            "mixer.x_proj": ("x_proj", 34, 64),
            "mixer.dt_proj": ("dt_proj", 64, 2),
            "mixer.out_proj": ("out_proj", 32, 64),
        },
    ),
}

FUSED = [family for family, (_, names) in FIRST_LAYER.items() if any(name.endswith(":q") for name in names)]
STACKED = [family for family, (_, names) in FIRST_LAYER.items() if any("experts." in name for name in names)]
COUNTS = {"qwen3_moe": 20, "llama4": 23, "mamba": 8}
"""Components of both layers where the second one differs from the first, or has as many as are listed here."""
ROUTERS = ("gate.weight", "router.weight", "router.layer.weight", "shared_expert_gate.weight")


@functools.cache
def fixed_network(family: str) -> PreTrainedModel:
    """A network that tests read, and leave as it was."""
    return make_network(family)


def draw_tokens(sequences: int = 2, length: int = 6) -> Tensor:
    return torch.randint(0, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("family", ALL)
def test_names_kinds_shapes_and_order(family: str) -> None:
    network = fixed_network(family)
    weight_views = find_components(network, 16)
    path, expected = FIRST_LAYER[family]
    first = {
        name: weight_view.component for name, weight_view in weight_views.items() if weight_view.component.layer == 0
    }
    assert [(name, c.kind, *c.shape) for name, c in first.items()] == [
        (f"{path}.0.{name}", *rest) for name, rest in expected.items()
    ]
    assert len(weight_views) == COUNTS.get(family, 2 * len(expected))
    assert [weight_view.component.layer for weight_view in weight_views.values()] == sorted(
        s.component.layer or 0 for s in weight_views.values()
    )
    assert all(
        weight_view.component.name == name and weight_view.component.stored_bits == 16
        for name, weight_view in weight_views.items()
    )


@pytest.mark.parametrize("family", ALL)
def test_components_cover_every_matrix_once(family: str) -> None:
    network = make_network(family)
    weight_views = find_components(network, 16)
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    for weight_view in weight_views.values():
        weight_view.view().add_(1000.0)
    prefix = find_layers(network)[0]
    for name, parameter in network.named_parameters():
        inside = name.startswith(f"{prefix}.") and parameter.dim() > 1
        is_matrix = inside and not name.endswith((*ROUTERS, "bias", "A_log", "conv1d.weight"))
        # Were two components to share a weight, that weight would be 2000 higher.
        torch.testing.assert_close(parameter, before[name] + 1000.0 * is_matrix, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", ALL)
def test_view_read_and_write_agree(family: str) -> None:
    network = make_network(family)
    for weight_view in find_components(network, 16).values():
        view, weight = weight_view.view(), weight_view.read()
        owned = getattr(weight_view.owner, weight_view.attribute)
        assert view.untyped_storage().data_ptr() == owned.untyped_storage().data_ptr()
        assert weight.is_contiguous() and weight.shape == weight_view.component.shape
        assert torch.equal(view.reshape(weight.shape), weight)
        weight += 1.0
        assert not torch.equal(weight_view.read(), weight), "reading gives a copy"
        weight_view.write(weight)
        assert torch.equal(weight_view.read(), weight) and torch.equal(weight_view.view().reshape(weight.shape), weight)


@pytest.mark.parametrize("family", ALL)
def test_whole_matrices_are_what_their_module_multiplies_by(family: str) -> None:
    network = fixed_network(family)
    generator = torch.Generator().manual_seed(2)
    for name, weight_view in find_components(network, 16).items():
        if ":" not in name:
            assert isinstance(weight_view.owner, nn.Linear | Conv1D)
            inputs = torch.randn(3, weight_view.component.shape[1], generator=generator)
            expected = nn.functional.linear(inputs, weight_view.read(), weight_view.owner.bias)
            torch.testing.assert_close(weight_view.owner(inputs), expected)


class WatchAttention(TorchFunctionMode):
    """Queries and keys `[..., head, position, width]` of all attention that is run inside, in whatever way."""

    def __init__(self) -> None:
        super().__init__()
        self.queries: list[Tensor] = []
        self.keys: list[Tensor] = []
        self.products = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        kwargs = kwargs or {}
        if function.__name__ == "scaled_dot_product_attention":
            self.keep(args[0], args[1])
        elif function.__name__ == "baddbmm":
            self.keep(kwargs["batch1"], kwargs["batch2"].transpose(-1, -2))
        elif function.__name__ == "matmul" and args[0].dim() == 4:
            self.products += 1
            if self.products % 2:  # the second product is with the values
                self.keep(args[0], args[1].transpose(-1, -2))
        return function(*args, **kwargs)

    def keep(self, query: Tensor, key: Tensor) -> None:
        self.queries.append(query.flatten(0, -2))
        self.keys.append(key.flatten(0, -2))


@contextmanager
def record_calls(module: nn.Module) -> Iterator[list[tuple[tuple[Tensor, ...], Tensor]]]:
    """(arguments, result) of every call of the module inside."""
    calls: list[tuple[tuple[Tensor, ...], Tensor]] = []
    handle = module.register_forward_hook(lambda _, arguments, result: calls.append((arguments, result)))
    try:
        yield calls
    finally:
        handle.remove()


def make_unbiased(family: str) -> PreTrainedModel:
    network = make_network(family)
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
    return network


@pytest.mark.parametrize("family", each(FUSED))
def test_fused_attention_parts_are_what_attention_gets(family: str) -> None:
    """Of a single token, attention passes on the value, and rotary positions are the identity."""
    network = make_unbiased(family)
    weight_views = find_components(network, 16)
    named = {
        weight_view.component.kind: weight_view
        for weight_view in weight_views.values()
        if weight_view.component.layer == 0
    }
    with (
        torch.no_grad(),
        WatchAttention() as watch,
        record_calls(named["query"].owner) as fused,
        record_calls(named["output"].owner) as output,
    ):
        network(torch.tensor([[7]]))
    inputs = fused[0][0][0].reshape(-1)
    heads, width = watch.queries[0].shape
    got = {"query": watch.queries[0], "key": watch.keys[0], "value": output[0][0][0].reshape(heads, width)}
    for kind, seen in got.items():
        expected = (named[kind].read() @ inputs).reshape(-1, width)
        repeated = expected.repeat_interleave(seen.shape[0] // expected.shape[0], dim=0)
        torch.testing.assert_close(seen, repeated, msg=lambda text, kind=kind: f"{kind}: {text}")


@pytest.mark.parametrize(
    ("family", "fused", "down"),
    [
        ("phi3", "mlp.gate_up_proj", "mlp.down_proj"),
        ("granitemoeshared", "shared_mlp.input_linear", "shared_mlp.output_linear"),
    ],
)
def test_fused_gates_are_what_the_mlp_computes(family: str, fused: str, down: str) -> None:
    network = fixed_network(family)
    weight_views = find_components(network, 16)
    gate, up, last = (weight_views[f"model.layers.0.{name}"] for name in (f"{fused}:gate", f"{fused}:up", down))
    with torch.no_grad(), record_calls(gate.owner) as first, record_calls(last.owner) as second:
        network(draw_tokens())
    inputs = first[0][0][0]
    expected = nn.functional.silu(inputs @ gate.read().T) * (inputs @ up.read().T)
    torch.testing.assert_close(second[0][0][0], expected)


def compute_experts(
    family: str, weight_views: Mapping[str, WeightView], path: str, inputs: Tensor, expert: int
) -> Tensor:
    """One expert `[token, width]` by the formula of its family, from components alone."""
    weights = [f"{path}.gate_up_proj:{expert}.gate", f"{path}.gate_up_proj:{expert}.up", f"{path}.down_proj:{expert}"]
    if family == "dbrx":
        weights = [f"{path}.mlp.{leaf}:{expert}" for leaf in ("w1", "v1", "w2")]
    gate, up, down = (weight_views[name].read() for name in weights)
    gated, raised = inputs @ gate.T, inputs @ up.T
    if family == "gpt_oss":
        gated, raised = gated.clamp(max=7.0), raised.clamp(-7.0, 7.0) + 1
        return (gated * torch.sigmoid(1.702 * gated) * raised) @ down.T
    return (nn.functional.silu(gated) * raised) @ down.T


@pytest.mark.parametrize("family", each(STACKED))
def test_stacked_experts_are_what_the_layer_computes(family: str) -> None:
    network = make_unbiased(family)
    weight_views = find_components(network, 16)
    path = next(name for name in weight_views if ".experts." in name).partition(".experts.")[0] + ".experts"
    with torch.no_grad(), record_calls(network.get_submodule(path)) as calls:
        network(draw_tokens())
    arguments, result = calls[0]
    inputs = arguments[0].reshape(-1, 32)
    if family == "llama4":  # it runs every expert on its own share of the rows
        shares = enumerate(inputs.chunk(3))
        expected = torch.cat([compute_experts(family, weight_views, path, share, expert) for expert, share in shares])
    else:
        _, chosen, amounts = arguments
        expected = torch.zeros_like(inputs)
        for expert in range(3):
            amount = (amounts * (chosen == expert)).sum(-1, keepdim=True)
            expected += amount * compute_experts(family, weight_views, path, inputs, expert)
    torch.testing.assert_close(result.reshape(-1, 32), expected, rtol=1e-4, atol=1e-5)


def test_a_fused_matrix_of_unknown_sizes_is_one_component() -> None:
    network = make_network("phi3")
    attention = network.get_submodule("model.layers.0.self_attn")
    attention.qkv_proj = nn.Linear(32, 61, bias=False)
    weight_views = find_components(network, 16)
    assert weight_views["model.layers.0.self_attn.qkv_proj"].component.shape == (61, 32)
    assert weight_views["model.layers.0.self_attn.qkv_proj"].component.kind == "qkv_proj"


def test_unknown_names_are_components_of_their_own_kind() -> None:
    network = make_network("llama")
    network.get_submodule("model.layers.1").adapter = nn.Linear(32, 4)
    weight_view = find_components(network, 16)["model.layers.1.adapter"]
    assert (weight_view.component.kind, weight_view.component.layer, weight_view.component.shape) == (
        "adapter",
        1,
        (4, 32),
    )


def test_a_network_without_layers_is_refused() -> None:
    network = make_network("llama")
    network.model.layers = nn.Sequential(*network.model.layers)
    with pytest.raises(ModelError, match="LlamaForCausalLM has no list of decoder layers") as caught:
        find_components(network, 16)
    assert_one_line(caught.value)


def test_layers_that_share_a_matrix_offer_it_once() -> None:
    network = make_network("llama")
    first, second = (network.get_submodule(f"model.layers.{index}.mlp") for index in range(2))
    second.up_proj.weight = first.up_proj.weight
    weight_views = find_components(network, 16)
    assert "model.layers.0.mlp.up_proj" in weight_views and "model.layers.1.mlp.up_proj" not in weight_views


def test_stored_bits_by_parameter() -> None:
    network = make_network("gpt2")
    bits = {name: 8 if "c_attn" in name else 32 for name, _ in network.named_parameters()}
    for name, weight_view in find_components(network, bits).items():
        assert weight_view.component.stored_bits == (8 if "c_attn" in name else 32)


def assert_one_line(error: BaseException) -> None:
    assert isinstance(error, CompressorError)
    assert "\n" not in str(error)


def test_include_and_exclude() -> None:
    network = fixed_network("llama")
    names = list(find_components(network, 16))
    assert list(find_components(network, 16, ["q_proj", "v_proj"])) == [
        n for n in names if n.endswith(("q_proj", "v_proj"))
    ]
    assert list(find_components(network, 16, (), [r"layers\.0\."])) == [n for n in names if "layers.1" in n]
    assert list(find_components(network, 16, ["mlp"], ["up|down"])) == [n for n in names if n.endswith("gate_proj")]


def test_embedding_and_head_are_offered_only_by_name() -> None:
    network = make_network("llama", tie_word_embeddings=False)
    assert not {"lm_head", "model.embed_tokens"} & set(find_components(network, 16))
    weight_views = find_components(network, 16, ["lm_head", "embed_tokens", "q_proj"])
    kinds = Counter(weight_view.component.kind for weight_view in weight_views.values())
    assert kinds == {"lm_head": 1, "embed_tokens": 1, "query": 2}
    assert weight_views["lm_head"].component.layer is None
    assert list(find_components(network, 16, ["lm_head|embed"], ["embed"])) == ["lm_head"]
    assert torch.equal(weight_views["lm_head"].read(), network.get_output_embeddings().weight)


@pytest.mark.parametrize("pattern", ["lm_head", "wte"])
def test_a_tied_pair_is_offered_once(pattern: str) -> None:
    network = make_network("gpt2")
    assert [name.rpartition(".")[2] for name in find_components(network, 16, [pattern])] == [pattern]
    both = find_components(network, 16, ["lm_head", "wte"])
    assert list(both) == ["transformer.wte"]
    both["transformer.wte"].write(torch.zeros(VOCABULARY, 32))
    assert not network.get_output_embeddings().weight.any()


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (
            ["q_(proj"],
            [],
            r"`components.include` must hold regular expressions, got 'q_\(proj' \(.*\); escape or mend it",
        ),
        ([], ["*"], r"`components.exclude` must hold regular expressions, got '\*'"),
        ([r"layers\.0\..*q_prj$"], [], r"`components.include` .* must match a component, .* did you mean `q_proj`"),
        ([], ["gate_porj"], r"`components.exclude` .* of 16 matches none; did you mean `gate_proj`"),
        ([], ["."], r"`components.exclude` \['.'\] leaves no component"),
    ],
)
def test_wrong_patterns_are_one_line(include: list[str], exclude: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        find_components(fixed_network("llama"), 16, include, exclude)
    assert_one_line(caught.value)


@pytest.mark.parametrize("setting", ["include", "exclude"])
@pytest.mark.parametrize("pattern", ["(a|_|.|[a-z])+$zz", r"(?:(.)|(\w)|([a-z]))+\d\d\d", r"((.*)*)*(.|\w)*\1!"])
def test_a_pattern_that_backtracks_for_ever_is_given_up(
    setting: str, pattern: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(components, "MATCHING_SECONDS", 0.1)
    message = rf"`components\.{setting}` .*(must match within 0.1 s, and {re.escape(repr(pattern))} takes longer|none)"
    began = time.monotonic()
    with pytest.raises(ConfigError, match=message) as caught:
        find_components(fixed_network("llama"), 16, **{setting: [pattern]})
    assert_one_line(caught.value)
    assert time.monotonic() - began < 10


def test_patterns_have_the_syntax_of_the_standard_library() -> None:
    network = fixed_network("llama")
    for pattern in (r"(?i)Q_PROJ$", r"layers\.(\d)\.(?!mlp)", r"(?P<leaf>[kqv])_proj\Z", "[.]|_proj", "q_proj|"):
        names = list(find_components(network, 16))
        expected = [name for name in names if re.search(pattern, name)]
        assert list(find_components(network, 16, [pattern])) == expected or expected == names
    with pytest.raises(ConfigError, match=r"must hold regular expressions, got '\(\?R\)'"):
        find_components(network, 16, ["(?R)"])


def copy_state(network: nn.Module) -> dict[str, Tensor]:
    """Bit patterns of all parameters."""
    integers = {2: torch.int16, 4: torch.int32}
    return {name: p.detach().clone().view(integers[p.element_size()]) for name, p in network.named_parameters()}


def assert_same_state(network: nn.Module, before: Mapping[str, Tensor]) -> None:
    after = copy_state(network)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], before[name]) for name in before)


def draw_weights(weight_views: Mapping[str, WeightView], names: list[str]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(weight_views[name].component.shape, generator=generator) for name in names}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ALL)
def test_a_swap_leaves_no_trace(family: str, dtype: torch.dtype) -> None:
    network = make_network(family).to(dtype)
    weight_views = find_components(network, 16)
    before = copy_state(network)
    weights = draw_weights(weight_views, list(weight_views))
    with swapped(weight_views, weights):
        for name, weight in weights.items():
            assert torch.equal(weight_views[name].read(), weight.to(dtype))
    assert_same_state(network, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_swap_restores_what_no_number_tells(dtype: torch.dtype) -> None:
    network = make_network("gpt2").to(dtype)
    weight_views = find_components(network, 16)
    weight_view = weight_views["transformer.h.0.attn.c_attn:k"]
    integer = torch.int32 if dtype is torch.float32 else torch.int16
    nans = {torch.float32: (0x7F800001, 0x7FC12345), torch.bfloat16: (0x7F81, 0x7FC5), torch.float16: (0x7C01, 0x7E05)}
    weight_view.view().view(integer)[0, :2] = torch.tensor(nans[dtype], dtype=integer)  # one of them signals
    weight_view.view()[0, 2] = -0.0
    before = copy_state(network)
    with swapped(weight_views, draw_weights(weight_views, list(weight_views))):
        pass
    assert_same_state(network, before)
    assert weight_view.read()[0, :2].isnan().all() and weight_view.read()[0, 2].signbit()


def test_a_swap_is_undone_after_an_error_inside() -> None:
    network = make_network("phi3")
    weight_views = find_components(network, 16)
    before = copy_state(network)
    with pytest.raises(KeyboardInterrupt), swapped(weight_views, draw_weights(weight_views, list(weight_views))):
        raise KeyboardInterrupt
    assert_same_state(network, before)


def test_a_half_done_swap_is_undone() -> None:
    network = make_network("llama")
    weight_views = find_components(network, 16)
    before = copy_state(network)
    weights = draw_weights(weight_views, list(weight_views)[:4])
    weights[list(weight_views)[3]] = torch.zeros(2, 2)
    with pytest.raises(PlanError, match=r"`model.layers.0.self_attn.o_proj` must have the shape \[32, 32\]") as caught:
        swapped(weight_views, weights).__enter__()
    assert_one_line(caught.value)
    assert_same_state(network, before)


def test_an_unknown_component_is_refused_with_near_misses() -> None:
    network = make_network("llama")
    before = copy_state(network)
    weight_views = find_components(network, 16)
    weights = draw_weights(weight_views, list(weight_views)[:1]) | {
        "model.layers.0.self_attn.q_prj": torch.zeros(32, 32)
    }
    with pytest.raises(PlanError, match=r"did you mean `model\.layers\.0\.self_attn\.q_proj`") as caught:
        swapped(weight_views, weights).__enter__()
    assert_one_line(caught.value)
    assert_same_state(network, before)


def test_overlapping_swaps_are_undone_in_reverse() -> None:
    network = make_network("gpt2")
    weight_views = find_components(network, 16, ["lm_head"]) | find_components(network, 16, ["wte"])
    assert len(weight_views) == 2
    before = copy_state(network)
    with swapped(weight_views, draw_weights(weight_views, list(weight_views))):
        assert torch.equal(weight_views["lm_head"].read(), weight_views["transformer.wte"].read())
        with swapped(weight_views, {"lm_head": torch.zeros(VOCABULARY, 32)}):
            assert not weight_views["transformer.wte"].read().any()
    assert_same_state(network, before)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_swaps_work_in_every_gradient_mode(mode: Callable[[], AbstractContextManager[None]]) -> None:
    network = make_network("gpt2")
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    weight_views = find_components(network, 16)
    before = copy_state(network)
    name = next(iter(weight_views))
    with mode():
        with swapped(weight_views, {name: weight_views[name].read().requires_grad_() * 2}):
            network(draw_tokens())
        copied = weight_views[name].read()
    assert not copied.is_inference() and not copied.requires_grad
    assert all(p.requires_grad and p.is_leaf and p.grad_fn is None for p in network.parameters())
    assert_same_state(network, before)


@settings(max_examples=30, deadline=None)
@given(data=st.data(), family=st.sampled_from(["gpt2", "phi3", "mixtral", "falcon_grouped", "gpt_oss"]))
def test_swaps_of_any_subset_leave_no_trace(data: st.DataObject, family: str) -> None:
    network = fixed_network(family)
    weight_views = find_components(network, 16)
    chosen = data.draw(st.lists(st.sampled_from(sorted(weight_views)), unique=True, max_size=6))
    weights = {name: torch.full(weight_views[name].component.shape, float(index)) for index, name in enumerate(chosen)}
    before = copy_state(network)
    untouched = {name: weight_view.read() for name, weight_view in weight_views.items() if name not in chosen}
    with swapped(weight_views, weights):
        assert all(torch.equal(weight_views[name].read(), weight) for name, weight in weights.items())
        assert all(torch.equal(weight_views[name].read(), weight) for name, weight in untouched.items())
    assert_same_state(network, before)


@pytest.mark.parametrize("family", ATTENTION)
def test_zero_values_silence_attention(family: str) -> None:
    """What the output matrix gets is zero when, and only when, the values are."""
    network = make_unbiased(family)
    weight_views = find_components(network, 16)
    values = {n: torch.zeros(s.component.shape) for n, s in weight_views.items() if s.component.kind == "value"}
    others = {
        n: torch.zeros(s.component.shape) for n, s in weight_views.items() if s.component.kind in ("query", "key")
    }
    output = next(weight_view for weight_view in weight_views.values() if weight_view.component.kind == "output")
    for weights, silent in ((values, True), (others, False)):
        with torch.no_grad(), swapped(weight_views, weights), record_calls(output.owner) as calls:
            network(draw_tokens())
        assert bool(calls[0][0][0].abs().max() < 1e-6) is silent
