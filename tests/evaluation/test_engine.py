"""The engine against plain forward passes: the same bits, whatever the family, the plan and the metric."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from compressor.contracts import Plan, Readout, Treatment
from compressor.errors import ModelError
from compressor.evaluation.engine import Engine
from compressor.evaluation.first_divergence import split_positions
from compressor.evaluation.layer_replay import CannotReplay, LayerReplay
from compressor.evaluation.module_cache import ModuleCache
from compressor.evaluation.streaming_engine import StreamingEngine
from compressor.models import Model, load_model
from compressor.models.patching import patched
from compressor.models.tensor_spill import TensorSpill
from compressor.resources import MemoryBudget
from compressor.settings import ComponentSettings, DType, ModelSettings, SweepMode
from compressor_plugins.metrics.kl import Kl
from tests.support.families import FAMILIES, ODDITIES, TWO, each, save_checkpoint
from tests.support.slow import rarely, rarely_cases
from tests.support.snapshots import is_unchanged, snapshot
from tests.support.sweeps import TOKENS, assert_same_bits, make_sweep, open_engine, score_both
from tests.support.trial_weights import GivenWeights, MaskedWeights, mask

EVERY_FAMILY = each(FAMILIES | ODDITIES)


def load(folder: Path, family: str = "llama", components: ComponentSettings | None = None, **options: object) -> Model:
    save_checkpoint(family, folder, **options)  # type: ignore[arg-type]
    return load_model(ModelSettings(path=str(folder)), components)


def make_trials(model: Model, seed: int = 0, several: int = 6) -> list[Plan]:
    """Every component alone, some at random, all, none."""
    rng, names = np.random.default_rng(seed), list(model.components)
    plans = [[name] for name in names]
    plans += [sorted(rng.choice(names, rng.integers(1, len(names) + 1), replace=False)) for _ in range(several)]
    return [dict.fromkeys(plan, mask(number)) for number, plan in enumerate([*plans, names, []])]


def make_family_tree(model: Model, seed: int, parents: int = 3, children: int = 12) -> list[Plan]:
    """Trials as a beam has them: each is one of a few plans and one treatment more; some come twice."""
    rng, names = np.random.default_rng(seed), list(model.components)
    plans: list[dict[str, Treatment]] = []
    for _ in range(parents):
        chosen = rng.choice(names, rng.integers(1, len(names)), replace=False)
        plans.append({str(name): mask(int(rng.integers(2))) for name in chosen})
    plans += [{**plans[rng.integers(parents)], str(rng.choice(names)): mask(0)} for _ in range(children)]
    return [*plans, plans[0], plans[-1]]


@pytest.mark.parametrize("family", EVERY_FAMILY)
def test_every_family_scores_as_by_plain_passes(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    before = snapshot(model)
    evaluator = make_sweep(model)
    exact, plain = score_both(evaluator, make_trials(model))
    assert_same_bits(exact, plain)
    assert any(values["fdtm"].min() < TOKENS for values in plain)
    assert is_unchanged(model, before)


def combine_engines_and_metrics() -> Iterator[Any]:
    """Two families have each engine once, with another choice of metrics; the rest is slow."""
    for family, streams in product(("llama", "gemma3", "mixtral", "gpt2", "mamba"), (False, True)):
        for metrics in (["fdtm", "kl"], ["fdtm"]):
            always = family in ("llama", "mamba") and streams == (metrics == ["fdtm"])
            yield pytest.param(family, streams, metrics, marks=() if always else pytest.mark.slow)


@pytest.mark.parametrize("seed", [0, *rarely([1, 2])])
@pytest.mark.parametrize(("family", "streams", "metrics"), list(combine_engines_and_metrics()))
def test_trials_that_are_alike_at_first_score_as_by_plain_passes(
    tmp_path: Path, family: str, streams: bool, metrics: list[str], seed: int
) -> None:
    model = load(tmp_path, family, **({"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}))
    before, evaluator = snapshot(model), make_sweep(model)
    evaluator.engine = open_engine(evaluator, streams)
    exact, plain = score_both(evaluator, make_family_tree(model, seed), names=metrics)
    assert_same_bits(exact, plain)
    assert is_unchanged(model, before)


@pytest.mark.parametrize("seed", [0, 1, *rarely([2, 3, 4])])
def test_every_layer_runs_once_for_all_that_are_alike_up_to_it(tmp_path: Path, seed: int) -> None:
    """As many runs of layers as there are different beginnings of trials, no more."""
    model = load(tmp_path, num_hidden_layers=4)
    evaluator, trials = make_sweep(model, batch=6), make_family_tree(model, seed)
    evaluator.engine = Engine(LayerReplay(model), evaluator.weight_source)
    beginnings, last = set[object](), 0
    for trial in trials:
        firsts = {name: evaluator.engine.replay.spans[name][0] for name in trial}
        last = max(last, min(firsts.values()))
        for index in range(min(firsts.values()), 4):
            changes = frozenset((name, trial[name]) for name in trial if firsts[name] <= index)
            beginnings.add((index, changes))
    visits = list[int]()
    for index, layer in enumerate(model.network.model.layers):
        layer.forward = partial(note_visit, visits, index, layer.forward)
    evaluator.score_all(trials, ["kl"])
    unchanged = last + 1  # the model as it stands is run up to where the last trial leaves it
    assert len(beginnings) <= len(visits) <= len(beginnings) + unchanged + 4 * 4  # and where single ones leave a node


def draw_depths() -> Iterator[Any]:
    """Every family with every seed, which is also another batch size and first prefix."""
    for family in ("llama", "gemma2", "qwen3_moe", "gpt2"):
        for seed in range(4):
            yield pytest.param(family, seed, marks=pytest.mark.slow)


@pytest.mark.parametrize(("family", "seed"), list(draw_depths()))
def test_deeper_models_prefixes_and_text_score_as_by_plain_passes(tmp_path: Path, family: str, seed: int) -> None:
    layers = {"n_layer": 4} if family == "gpt2" else {"num_hidden_layers": 4}
    if family != "qwen3_moe":
        model = load(tmp_path, family, seed=seed, with_tokenizer=True, **layers)
    else:
        model = load(tmp_path, family, seed=seed, with_tokenizer=True, **layers, mlp_only_layers=[2])
    evaluator = make_sweep(model, batch=1 + seed, text=True)
    exact, plain = score_both(evaluator, make_trials(model, seed), start=seed % 3, stop=5)
    assert_same_bits(exact, plain)


def test_trained_models_score_as_by_plain_passes(trained_folder: Path) -> None:
    model = load_model(ModelSettings(path=str(trained_folder)))
    exact, plain = score_both(make_sweep(model), make_trials(model, several=2))
    assert_same_bits(exact, plain)


def test_low_precision_scores_as_by_plain_passes(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path), dtype=DType.bfloat16))
    exact, plain = score_both(make_sweep(model), make_trials(model, several=2))
    assert_same_bits(exact, plain)


@pytest.mark.parametrize("family", each(FAMILIES | ODDITIES, TWO))
def test_branches_that_go_on_together_say_the_same(tmp_path: Path, family: str) -> None:
    """Larger products round otherwise: the last bits may differ, and tokens only where there are near ties."""
    model = load(tmp_path, family)
    evaluator, trials = make_sweep(model), make_trials(model, several=2)
    evaluator.engine = Engine(LayerReplay(model), evaluator.weight_source, at_once=3)
    exact, plain = score_both(evaluator, trials)
    for one, other in zip(exact, plain, strict=True):
        assert np.allclose(one["kl"], other["kl"], rtol=1e-3, atol=1e-6)
        assert np.mean(one["fdtm"] == other["fdtm"]) > 0.95


@pytest.mark.parametrize("family", each(FAMILIES | ODDITIES, TWO))
def test_positions_that_come_in_parts_count_the_same(tmp_path: Path, family: str) -> None:
    """Where nothing but the first divergence is read; parts of a sequence round otherwise, so near ties may differ."""
    model = load(tmp_path, family)
    evaluator, trials = make_sweep(model), make_trials(model)
    exact, plain = score_both(evaluator, trials, names=["fdtm"])
    assert evaluator.engine is not None
    assert evaluator.engine.replay.splits_positions == (family != "mamba"), "a family's cache was not understood"
    found, expected = (np.array([values["fdtm"] for values in each]) for each in (exact, plain))
    assert np.mean(found == expected) > 0.99
    assert expected.min() < TOKENS / 4 < expected.max()


def test_trained_models_count_the_same_in_parts(trained_folder: Path) -> None:
    model = load_model(ModelSettings(path=str(trained_folder)))
    exact, plain = score_both(make_sweep(model), make_trials(model, several=2), names=["fdtm"])
    assert_same_bits(exact, plain)


def test_positions_split_at_a_quarter_and_twice_as_many_each() -> None:
    assert split_positions(95, 64) == [47, 79, 95]
    assert split_positions(3, 3) == [1, 3]
    assert split_positions(10, 1) == [10]


def test_low_precision_keeps_positions_together(tmp_path: Path) -> None:
    """There the base agrees with itself in no other shape than that of its reference."""
    save_checkpoint("llama", tmp_path)
    assert not LayerReplay(load_model(ModelSettings(path=str(tmp_path), dtype=DType.bfloat16))).splits_positions


@pytest.mark.parametrize(
    ("family", "at_once"),
    [
        *((family, 1) for family in ("qwen3_moe", "mamba")),
        ("llama", 3),
        *rarely_cases((family, 1) for family in ("llama", "gemma2", "gpt2")),
        *rarely_cases((family, 3) for family in ("gemma2", "qwen3_moe", "gpt2", "mamba")),
    ],
)
def test_streaming_scores_as_by_plain_passes(tmp_path: Path, family: str, at_once: int) -> None:
    """Layer by layer for all trials, some of whose hidden states wait on disk."""
    model = load(tmp_path, family, **({"n_layer": 3} if family == "gpt2" else {"num_hidden_layers": 3}))
    before = snapshot(model)
    evaluator, trials = make_sweep(model), make_trials(model)
    evaluator.engine = StreamingEngine(
        LayerReplay(model), evaluator.weight_source, MemoryBudget(host=8 * 40_000), at_once
    )
    exact, plain = score_both(evaluator, trials)
    if at_once == 1:
        assert_same_bits(exact, plain)
    assert all(np.allclose(a["kl"], b["kl"], rtol=1e-3, atol=1e-6) for a, b in zip(exact, plain, strict=True))
    assert is_unchanged(model, before)


@pytest.mark.parametrize("family", ["llama", "falcon", *rarely(["gemma3", "opt"])])
def test_a_streamed_model_uses_the_streaming_engine_and_scores_the_same(tmp_path: Path, family: str) -> None:
    model = load(tmp_path, family)
    streamed = load_model(ModelSettings(path=str(tmp_path), stream=True))
    plain, evaluator = make_sweep(model), make_sweep(streamed)
    plain.mode = SweepMode.plain
    found, expected = evaluator.score_all(make_trials(streamed)), plain.score_all(make_trials(model))
    assert isinstance(evaluator.engine, StreamingEngine)
    assert_same_bits(found, expected)


def note_visit(visits: list[int], index: int, forward: Callable[..., torch.Tensor], *args: Any, **named: Any) -> Any:  # noqa: ANN401
    visits.append(index)
    return forward(*args, **named)


def test_streaming_reads_every_layer_once(tmp_path: Path) -> None:
    model = load(tmp_path, num_hidden_layers=4)
    evaluator, visits = make_sweep(model), list[int]()
    evaluator.engine = StreamingEngine(LayerReplay(model), evaluator.weight_source, MemoryBudget())
    for index, layer in enumerate(model.network.model.layers):
        layer.forward = partial(note_visit, visits, index, layer.forward)
    evaluator.score_all(make_trials(model)[:-1], ["fdtm"])
    assert len(visits) > 100
    assert visits == sorted(visits)


def test_what_does_not_fit_in_memory_waits_on_disk(tmp_path: Path) -> None:
    tensors = {key: torch.randn(3, key + 1) for key in range(4)}
    with TensorSpill(limit=40) as spill:
        for key, tensor in tensors.items():
            spill.put(key, tensor)
        spill.put(1, tensors[1] + 1)
        assert torch.equal(spill.get(1), tensors[1] + 1)
        assert all(torch.equal(spill.get(key), tensors[key]) for key in (0, 2, 3))
        assert 0 < spill.held <= 40


def test_the_embedding_and_the_head_are_scored_too(tmp_path: Path) -> None:
    """They are not inside the layers, so such trials are plain passes among the others."""
    everything = ComponentSettings(include=["proj", "embed", "lm_head"])
    model = load(tmp_path, "qwen2", everything)
    exact, plain = score_both(make_sweep(model), make_trials(model, several=3))
    assert_same_bits(exact, plain)
    assert "model.embed_tokens" in model.components


def test_weights_that_are_in_two_components_are_changed_as_by_plain_passes(tmp_path: Path) -> None:
    """What one of them is made from depends on the other, so such trials share nothing."""
    model = load(tmp_path, "llama", num_hidden_layers=4)
    layers = model.network.model.layers
    layers[2].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    first, other = (f"model.layers.{index}.mlp.up_proj" for index in (0, 2))
    assert LayerReplay(model).tied == {first, other}
    plans = [[first, other], [first], [first, "model.layers.1.mlp.up_proj"], [other], [first, other]]
    exact, plain = score_both(make_sweep(model), [dict.fromkeys(plan, mask(0)) for plan in plans])
    assert_same_bits(exact, plain)


def test_matrices_that_layers_share_are_changed_in_all_of_them(tmp_path: Path) -> None:
    model = load(tmp_path, "llama", num_hidden_layers=4)
    layers = model.network.model.layers
    layers[2].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    assert LayerReplay(model).spans["model.layers.0.mlp.up_proj"] == (0, 2)
    trials: list[Plan] = [{f"model.layers.{index}.mlp.up_proj": mask(index)} for index in range(2)]
    exact, plain = score_both(make_sweep(model), trials)
    assert_same_bits(exact, plain)


def note_run(
    ran: set[str], name: str, forward: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor
) -> torch.Tensor:
    ran.add(name)
    return forward(x)


def test_nothing_is_computed_that_a_trial_leaves_as_it_is(tmp_path: Path) -> None:
    model = load(tmp_path, "llama", num_hidden_layers=3)
    layers = model.network.model.layers
    replay = LayerReplay(model)
    entry = replay.enter(torch.zeros(2, 5, dtype=torch.long))
    computed: dict[str, set[str]] = {}
    names = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    inner = {name.rpartition(".")[2]: module for name, module in layers[0].named_modules()}
    memo = ModuleCache(layers[0])
    with memo.recording():
        replay.run(0, entry, entry.hidden)
    for changed in sorted(names):
        computed[changed] = set()
        watched = {inner[name]: partial(note_run, computed[changed], name, inner[name].forward) for name in names}
        with patched(watched), memo.serving([inner[changed]]):
            replay.run(0, entry, entry.hidden)
    mlp = {"gate_proj", "up_proj", "down_proj"}
    assert computed == {
        **{name: {name, "o_proj", *mlp} for name in ("q_proj", "k_proj", "v_proj")},
        "o_proj": {"o_proj", *mlp},
        "gate_proj": {"gate_proj", "down_proj"},
        "up_proj": {"up_proj", "down_proj"},
        "down_proj": {"down_proj"},
    }


class Adds(nn.Module):
    """Adds in place to what another module gave."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        given = self.first(x)
        given += 1
        return given + self.second(x)


@torch.no_grad()
def test_what_is_written_to_afterwards_is_computed_again() -> None:
    torch.manual_seed(0)
    layer, x = Adds(), torch.randn(3, 4)
    memo = ModuleCache(layer)
    with memo.recording():
        layer(x)
    layer.second.weight *= 2
    expected = layer(x)
    with memo.serving([layer.second]):
        assert torch.equal(layer(x), expected)
    with memo.serving([layer.second]):
        assert torch.equal(layer(x), expected)


def test_a_failing_trial_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = load(tmp_path)
    evaluator, before = make_sweep(model), snapshot(model)
    names = list(model.components)
    given = GivenWeights()
    broken = given.add_plan({names[-1]: torch.full(model.components[names[-1]].shape, torch.nan)})
    evaluator.weight_source = MaskedWeights(model, given)
    forwards = [module.__dict__.get("forward") for module in model.network.modules()]
    with pytest.raises(ModelError, match="NaN or infinity"):
        evaluator.score_all([{names[0]: mask(0)}, broken])
    assert is_unchanged(model, before)
    assert forwards == [module.__dict__.get("forward") for module in model.network.modules()]


def test_a_sweep_that_nobody_finishes_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    model = load(tmp_path)
    before = snapshot(model)
    found = make_sweep(model).score(make_trials(model))
    next(found)
    found.close()
    assert is_unchanged(model, before)


def test_what_does_not_fit_together_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(tmp_path)
    evaluator, trials = make_sweep(model), make_trials(model, several=0)
    evaluator.engine = engine = Engine(LayerReplay(model), evaluator.weight_source, at_once=8)
    enter = LayerReplay.enter

    def fail_when_large(self: LayerReplay, tokens: torch.Tensor) -> object:
        if len(tokens) > 3 * 4:
            raise torch.OutOfMemoryError("too large")
        return enter(self, tokens)

    monkeypatch.setattr(LayerReplay, "enter", fail_when_large)
    exact, plain = score_both(evaluator, trials)
    assert engine.runner.at_once <= 3
    assert all(np.allclose(a["kl"], b["kl"], rtol=1e-3, atol=1e-6) for a, b in zip(exact, plain, strict=True))


def test_memory_that_a_metric_lacks_is_halved_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values that were computed before memory ran out are not counted twice."""
    model = load(tmp_path)
    evaluator, trials = make_sweep(model), make_trials(model, several=0)
    evaluator.engine = engine = Engine(LayerReplay(model), evaluator.weight_source, at_once=8)
    calls, values = list[int](), Kl.sequence_values

    def fail_once(self: Kl, candidate: Readout, base: Readout) -> torch.Tensor:
        calls.append(len(calls))
        if len(calls) == 4:  # the first in the engine: the base's first batch is read twice, its second once
            raise torch.OutOfMemoryError("too large")
        return values(self, candidate, base)

    monkeypatch.setattr(Kl, "sequence_values", fail_once)
    exact, plain = score_both(evaluator, trials)
    assert engine.runner.at_once == 4
    assert all(np.allclose(a["kl"], b["kl"], rtol=1e-3, atol=1e-6) for a, b in zip(exact, plain, strict=True))


def test_a_model_that_cannot_be_replayed_is_scored_plainly_and_said_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A layer that reads what an earlier one left behind: replayed branches would read stale values."""
    model = load(tmp_path, num_hidden_layers=3)
    layers = model.network.model.layers
    left: list[torch.Tensor] = []
    layers[0].mlp.register_forward_hook(lambda module, inputs, output: left.append(output) or None)
    layers[2].mlp.register_forward_hook(lambda module, inputs, output: output + left[-1])
    with pytest.raises(CannotReplay, match="do not give its own logits"):
        LayerReplay(model)
    evaluator, trials = make_sweep(model), make_trials(model, several=0)
    expected = [evaluator.score_all([trial])[0] for trial in trials]
    with caplog.at_level(logging.WARNING):
        found = evaluator.score_all(trials)
        evaluator.score_all(trials)
    assert_same_bits(found, expected)
    (record,) = caplog.records
    assert record.message.startswith(
        "every trial is a whole forward pass: LlamaForCausalLM cannot be run layer by layer, its layers with `model."
    )
