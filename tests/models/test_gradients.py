"""The walk back gives every sequence's own gradient, of every family."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compressor.models import Model, load_model
from compressor.models.architectures import weight_gradient
from compressor.models.gradients import LayerwiseGradients
from compressor.settings import ComponentSettings, DType, ModelSettings
from tests.support.families import FAMILIES, ODDITIES, each, save_checkpoint
from tests.support.gradients import KEEP, TOKENS, draw_tokens, explicit_gradients, walk_gradients, weigh

ONE_BY_ONE = {"mixtral", "qwen3_moe", "opt", "gpt_oss", "qwen2_moe", "llama4", "dbrx", "granitemoeshared", "mamba"}
"""Families in which some component sees the tokens of several sequences as one list, or is not a module's call."""


def load_family(family: str, folder: Path, components: ComponentSettings | None = None) -> Model:
    save_checkpoint(family, folder)
    return load_model(ModelSettings(path=str(folder)), components)


@pytest.mark.parametrize("family", each(FAMILIES | ODDITIES))
def test_gradients_are_autograds_own(family: str, tmp_path: Path) -> None:
    model = load_family(family, tmp_path)
    tokens, names = draw_tokens(3), list(model.components)
    found = walk_gradients(model, names, tokens)
    for name in names:
        expected = explicit_gradients(model, name, tokens)
        scale = expected.abs().max().clamp(min=1e-6)
        torch.testing.assert_close(
            found[name] / scale, expected / scale, rtol=1e-4, atol=1e-4, msg=f"the gradient of {name} is another"
        )


@pytest.mark.parametrize("family", each(FAMILIES | ODDITIES))
def test_only_models_that_mix_sequences_are_walked_one_by_one(family: str, tmp_path: Path) -> None:
    model = load_family(family, tmp_path)
    assert (LayerwiseGradients(model, list(model.components)).at_once == 1) == (family in ONE_BY_ONE)


@pytest.mark.parametrize("family", ["qwen2", "gpt2", "llama"])
def test_tied_weights_have_the_gradient_of_all_their_uses(family: str, tmp_path: Path) -> None:
    model = load_family(family, tmp_path, ComponentSettings(include=["embed", "wte", "lm_head", "q_proj|c_attn"]))
    outer = [name for name, component in model.components.items() if component.layer is None]
    tokens = draw_tokens(2)
    assert outer
    found = walk_gradients(model, list(model.components), tokens)
    for name in model.components:
        torch.testing.assert_close(found[name], explicit_gradients(model, name, tokens), rtol=1e-3, atol=1e-4)


def test_gradients_of_low_precision_add_up_in_float32() -> None:
    """A sum of 3001 ones: bfloat16 has no such number."""
    ones = torch.ones(1, 3001, 1, dtype=torch.bfloat16)
    found = weight_gradient(torch.nn.Linear(1, 1), ones, ones)
    assert found.dtype == torch.float32 and found.item() == 3001


@pytest.mark.parametrize("family", ["llama", "gpt2", "phi3"])
def test_a_bfloat16_model_has_nearly_the_same_gradients(family: str, tmp_path: Path) -> None:
    """Same weights, only the arithmetic differs; what a tap hears is added up, and handed on, in float32."""
    save_checkpoint(family, tmp_path, dtype=torch.bfloat16)
    exact, low = (load_model(ModelSettings(path=str(tmp_path), dtype=DType(name))) for name in ("float32", "bfloat16"))
    tokens, names, dtypes = draw_tokens(3), list(low.components), set()
    LayerwiseGradients(low, names).run_backward(
        tokens, KEEP, weigh, lambda name, rows, gradients: dtypes.add(gradients.dtype)
    )
    found, expected = walk_gradients(low, names, tokens), walk_gradients(exact, names, tokens)
    assert dtypes == {torch.float32}
    for name in names:
        error = (found[name] - expected[name]).norm() / expected[name].norm()
        assert error < 0.15, f"the gradient of {name} is off by {error:.2f}"


def test_a_module_that_is_called_twice_has_the_gradient_of_both_calls(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path)))
    layers = model.network.model.layers
    layers[1].mlp = layers[0].mlp
    names = [name for name in model.components if "layers.0.mlp" in name or "self_attn" in name]
    tokens = draw_tokens(2)
    assert LayerwiseGradients(model, names).at_once == 1
    found = walk_gradients(model, names, tokens)
    for name in names:
        torch.testing.assert_close(found[name], explicit_gradients(model, name, tokens), rtol=1e-3, atol=1e-4)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = load_family("mixtral", tmp_path)
    before = {name: parameter.clone() for name, parameter in model.network.named_parameters()}
    walk_gradients(model, list(model.components), draw_tokens(2))
    for name, parameter in model.network.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and not parameter.requires_grad
    assert not any(module._forward_hooks or "forward" in vars(module) for module in hooked(model))


def test_the_model_is_left_as_it_was_when_the_scalar_fails(tmp_path: Path) -> None:
    model = load_family("llama", tmp_path)

    def fail(logits: Tensor) -> Tensor:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        LayerwiseGradients(model, list(model.components)).run_backward(draw_tokens(2), KEEP, fail, lambda *_: None)
    assert not any(module._forward_hooks or "forward" in vars(module) for module in hooked(model))


def hooked(model: Model) -> Iterator[torch.nn.Module]:
    yield from model.network.modules()


def test_a_layer_keeps_only_its_input(tmp_path: Path) -> None:
    """While the model runs forward, no activation of a layer's inside stays in memory."""
    model = load_family("llama", tmp_path)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        LayerwiseGradients(model, list(model.components)).run_backward(draw_tokens(2), KEEP, weigh, lambda *_: None)
    inside = model.components["model.layers.0.mlp.down_proj"].shape[1] * 2 * TOKENS
    assert inside not in kept[: len(kept) // 3]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_only_experts_may_miss_tokens(family: str, tmp_path: Path) -> None:
    model = load_family(family, tmp_path)
    missed = set(model.components) - LayerwiseGradients(model, list(model.components)).every_token
    assert {name for name in model.components if "self_attn" in name}.isdisjoint(missed)
    assert bool(missed) == (family == "mixtral")
