"""The reference owns the base: whatever happens to the model's LM head, the base's distribution stays bit for bit."""

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from compressor.commands.setup import open_setup
from compressor.contracts import Prefixes
from compressor.data.reference import Reference, build_reference, read_cached, write_cached
from compressor.errors import ModelError
from compressor.evaluation.evaluator import Evaluator
from compressor.models import Model, Replacement, load_model
from compressor.plugins import installed
from compressor.progress import Silent
from compressor.settings import ComponentSettings, DType, ModelSettings
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.schedules.uniform import Uniform
from tests.support.families import save_checkpoint
from tests.support.references import random_prefixes
from tests.support.runs import make_settings
from tests.support.slow import rarely
from tests.support.trial_weights import GivenWeights

KEEP = 6
HEADS = {
    "llama": ["lm_head"],
    "qwen2": ["embed_tokens"],  # tied: the head is the embedding
    "gemma2": ["embed_tokens"],  # tied, with a soft cap behind the head
    "cohere": ["embed_tokens"],  # tied, with a scale behind the head
    "gptj": ["lm_head"],  # with a bias
    "opt": ["embed_tokens"],
}
OFTEN = ("llama", "gemma2", "opt")
by_family = pytest.mark.parametrize("family", [*OFTEN, *rarely(family for family in HEADS if family not in OFTEN)])


def load(folder: Path, include: list[str], dtype: DType = DType.auto) -> Model:
    return load_model(ModelSettings(path=str(folder), dtype=dtype), ComponentSettings(include=include))


def open_family(family: str, folder: Path, include: list[str] | None = None) -> tuple[Model, Reference]:
    save_checkpoint(family, folder)
    model = load(folder, HEADS[family] if include is None else include)
    reference = build_reference(model, random_prefixes(model, count=5), KEEP, batch=4)
    reference.remember_distribution(model)
    return model, reference


def read_base(reference: Reference) -> list[Tensor]:
    """Log-probabilities, runners-up and margins of every batch, computed anew."""
    fresh, found = replace(reference, runners={}), []
    for start, batch in fresh.batches():
        base = fresh.base_readout(start, len(batch))
        found += [base.log_probabilities, *base.runners_up(4)]
    return found


def assert_base_is(reference: Reference, expected: list[Tensor]) -> None:
    for one, other in zip(read_base(reference), expected, strict=True):
        assert torch.equal(one, other)


def draw_head(model: Model) -> Tensor:
    weight = model.network.get_output_embeddings().weight
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)).to(weight)


def head_name(model: Model) -> str:
    (name,) = model.components
    return name


def train_head(model: Model) -> None:
    """One step of gradient descent on the LM head alone."""
    weight = model.network.get_output_embeddings().weight.requires_grad_(True)
    logits = model.network(torch.arange(8)[None], use_cache=False).logits
    logits.square().mean().backward()
    torch.optim.AdamW([weight], lr=0.1).step()
    weight.requires_grad_(False)


CHANGES: dict[str, Callable[[Model], object]] = {
    "written": lambda model: model.write(head_name(model), draw_head(model)),
    "pruned in place": lambda model: model.network.get_output_embeddings().weight[::2].zero_(),
    "with rounded inputs": lambda model: model.write(
        head_name(model), Replacement(draw_head(model), lambda inputs: inputs.round())
    ),
    "another module": lambda model: model.network.set_output_embeddings(nn.Linear(32, model.vocabulary, bias=False)),
    "another parameter": lambda model: setattr(
        model.network.get_output_embeddings(), "weight", nn.Parameter(draw_head(model), requires_grad=False)
    ),
    "trained": train_head,
}


@by_family
@pytest.mark.parametrize("change", CHANGES)
def test_another_head_does_not_change_the_base(family: str, change: str, tmp_path: Path) -> None:
    model, reference = open_family(family, tmp_path)
    expected, tokens = read_base(reference), reference.tokens[:, :-1]
    before = model.logits(tokens, KEEP)
    with torch.no_grad() if change != "trained" else torch.enable_grad():
        CHANGES[change](model)
    assert not torch.equal(model.logits(tokens, KEEP), before)
    assert reference.hidden is not None and reference.logits is None
    assert_base_is(reference, expected)


@by_family
def test_a_trial_of_the_head_does_not_change_the_base(family: str, tmp_path: Path) -> None:
    model, reference = open_family(family, tmp_path)
    expected = read_base(reference)
    with model.swapped({head_name(model): draw_head(model)}):
        assert_base_is(reference, expected)
    assert_base_is(reference, expected)


@by_family
def test_kl_is_that_of_two_separate_models(family: str, tmp_path: Path) -> None:
    """KL(F, F′) where F′ has another head and another layer, against both networks in float64, loaded apart."""
    model, reference = open_family(family, tmp_path, include=[*HEADS[family], "layers", r"\bh\b"])
    base, candidate = (load(tmp_path, list(model.components)) for _ in range(2))
    (head,) = [name for name, component in model.components.items() if component.layer is None]
    layer = next(name for name, component in model.components.items() if component.layer == 1)
    for name in (head, layer):
        noise = torch.randn(model.components[name].shape, generator=torch.Generator().manual_seed(2))
        for changed in (model, candidate):
            changed.write(name, model.read(name) if changed is candidate else model.read(name) + 0.05 * noise)
    p, q = (
        each.network.double()(reference.tokens[:, :-1], use_cache=False).logits[:, -KEEP:].log_softmax(-1)
        for each in (base, candidate)
    )
    expected = (p.exp() * (p - q)).sum(-1).mean(-1)
    found = Evaluator(model, reference, {"kl": Kl()}, GivenWeights()).score_current()["kl"][:, 0]
    assert expected.min() > 1e-3
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3)


def test_a_head_that_nobody_treats_shares_the_models_memory(tmp_path: Path) -> None:
    model, reference = open_family("llama", tmp_path, include=[])
    assert reference.head is not None
    weight, expected = model.network.lm_head.weight, read_base(reference)
    (own,) = reference.head._network.parameters()
    assert own.data_ptr() == weight.data_ptr()
    reference.head.own()
    assert own.data_ptr() != weight.data_ptr()
    weight.copy_(draw_head(model))
    assert_base_is(reference, expected)


def test_writing_to_a_shared_head_is_an_error_and_no_other_base(tmp_path: Path) -> None:
    model, reference = open_family("llama", tmp_path, include=[])
    model.network.lm_head.weight.mul_(2)
    for use in (lambda: read_base(reference), lambda: reference.head and reference.head.own()):
        with pytest.raises(ModelError, match=r"the LM head were changed.*; call `reference\.head\.own\(\)` before"):
            use()


def test_a_head_that_is_being_trained_is_copied(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    model = load(tmp_path, [])
    model.network.lm_head.weight.requires_grad_(True)
    reference = build_reference(model, random_prefixes(model, count=5), KEEP, batch=4)
    reference.remember_distribution(model)
    expected = read_base(reference)
    with torch.enable_grad():
        train_head(model)
    assert_base_is(reference, expected)


def test_two_references_of_a_base_can_share_its_head(tmp_path: Path) -> None:
    model, first = open_family("llama", tmp_path)
    second = build_reference(model, random_prefixes(model, count=5), KEEP, batch=4)
    expected = read_base(first)
    model.write("lm_head", draw_head(model))
    second.remember_distribution(model, first.head)
    assert second.head is first.head
    assert_base_is(second, expected)


@pytest.mark.parametrize("how", ["cannot be copied", "gives other logits", "does not run alone"])
def test_logits_are_kept_where_the_head_cannot_be(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint("llama", tmp_path)
    model = load(tmp_path, ["lm_head"])
    reference = build_reference(model, random_prefixes(model, count=5), KEEP, batch=4)

    def fail(*arguments: object) -> Tensor:
        raise ModelError("no halves")

    if how == "cannot be copied":
        model.network.handle = (number for number in range(3))  # deepcopy refuses a generator
    elif how == "gives other logits":
        monkeypatch.setattr(model, "project", lambda hidden: hidden)
    else:
        monkeypatch.setattr(model, "hidden", fail)
    reference.remember_distribution(model)
    assert reference.head is None and reference.hidden is None and reference.logits is not None
    expected = read_base(reference)
    logits = model.network(reference.tokens[:4, :-1], use_cache=False).logits[:, -KEEP:]
    assert torch.allclose(expected[0], logits.log_softmax(-1), atol=1e-5)
    model.write("lm_head", draw_head(model))
    assert_base_is(reference, expected)


def test_a_cached_reference_is_read_and_others_are_not_believed(tmp_path: Path) -> None:
    """Tokens of other prefixes, beyond the vocabulary or of another shape, and files of earlier versions."""
    tokens, path = torch.arange(30).reshape(3, 10), tmp_path / "reference.safetensors"
    made = Reference(tokens, 4, 2, near_ties=1, mended=3, noise_floor=5.5)
    write_cached(made, path)
    found = read_cached(path, tokens[:, :4], 6, 30)
    assert found is not None and torch.equal(found.tokens, tokens)
    assert (found.prefix_tokens, found.batch, found.near_ties, found.mended, found.noise_floor) == (4, 2, 1, 3, 5.5)
    assert read_cached(path, tokens[:, :4] + 1, 6, 31) is None
    assert read_cached(path, tokens[:, :4], 6, 29) is None
    assert read_cached(path, tokens[:, :4], 7, 30) is None
    facts = {"prefix_tokens": "4", "batch": "2", "near_ties": "1", "mended": "3", "noise_floor": "5.5"}
    safetensors.torch.save_file({"tokens": tokens}, path, facts)
    assert read_cached(path, tokens[:, :4], 6, 30) is None


def test_a_run_has_one_copy_of_the_bases_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The references to search on and to prove on share it; the LM head is a component, so it is a copy."""
    monkeypatch.setenv("COMPRESSOR_CACHE", str(tmp_path))
    save_checkpoint("llama", tmp_path / "model")
    model_settings = ModelSettings(path=str(tmp_path / "model"))
    settings = make_settings(Uniform(targets=[0.3]), model=model_settings, components=ComponentSettings(["lm_head"]))
    settings.metric.pop("perplexity")
    setup = open_setup(settings, installed(), (), Silent())
    deque(setup.take_reference_steps(tuple(Prefixes)), maxlen=0)
    heads = [setup.evaluators[which].reference.head for which in Prefixes]
    assert heads[0] is not None and heads[0] is heads[1]
