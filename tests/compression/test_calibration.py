"""Calibration data against explicit sums in float64 over inputs that hooks and plain loops find."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from compressor.compression import calibration, calibrator
from compressor.compression.calibration import TOKENS, Calibration, gather
from compressor.contracts import (
    Component,
    Compressor,
    Context,
    EstimateRequest,
    KeepRequest,
    Offer,
    Plan,
    ScoreRequest,
    SizeRequest,
    Treatment,
)
from compressor.errors import ModelError, PlanError, PluginError
from compressor.models import Model, load_model
from compressor.models.architectures import is_linear
from compressor.models.components import find_layers
from compressor.models.matmul_inputs import MatmulInputs, pair_matrices
from compressor.plugins import installed
from compressor.registry import Registry
from compressor.resources import MemoryBudget
from compressor.search.session import Session
from compressor.settings import ComponentSettings, DType, ModelSettings
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.pruning.masks import PrunedWeight
from tests.support.calibrations import ALL, assert_same, explicit, overheard, run_plainly
from tests.support.estimates import Bench, make_bench, make_reference, make_treatments
from tests.support.families import FAMILIES, ODDITIES, each, save_checkpoint
from tests.support.sessions import open_session

ROUTED = ("mixtral", "qwen3_moe", "qwen2_moe", "dbrx", "granitemoeshared", "gpt_oss")


def take(bench: Bench, names: Iterable[str] = ALL, **given: Any) -> Calibration:  # noqa: ANN401 - as gather
    return gather(bench.model, bench.reference, bench.model.components, names, **given)


@pytest.mark.parametrize("family", each(FAMILIES | ODDITIES))
def test_data_are_explicit_sums_over_inputs(family: str, tmp_path: Path) -> None:
    """Fused, transposed, tied and grouped ones; experts too where they are modules."""
    bench = make_bench(family, tmp_path)
    found = take(bench)
    with overheard(bench.model) as heard:
        run_plainly(bench)
    assert heard
    for name, inputs in heard.items():
        width = bench.model.components[name].shape[1]
        if name.endswith("dt_proj"):  # Mamba uses its weight, and does not call it
            source = name.replace("dt_proj", "x_proj")
            inputs = [x @ bench.model.read(source).double().T[:, :width] for x in heard[source]]
        assert_same(found.read(name, ALL), explicit(inputs, width), name, 1e-4)
    sequences, length = bench.reference.tokens.shape
    for name, component in bench.model.components.items():
        data = found.read(name, ALL)
        assert data is not None and data["hessian"].shape == (component.shape[1],) * 2
        assert data[TOKENS] <= sequences * (length - 1)
        if name in heard:
            assert data[TOKENS] > 0 or ".experts." in name


@contextmanager
def routed(model: Model) -> Iterator[dict[str, list[Tensor]]]:
    """Component of a stack -> inputs by a loop over experts, from what the module of the stack is called with."""
    heard: dict[str, list[Tensor]] = {
        name: [] for name, weight_view in model.weight_views.items() if not is_linear(weight_view.owner)
    }
    by_layer: dict[tuple[int, str, str], str] = {}
    for name in heard:
        component = model.components[name]
        assert component.layer is not None
        expert = name.partition(":")[2].partition(".")[0]
        by_layer[component.layer, component.kind, expert] = name

    def note(layer: int, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        hidden, chosen = inputs[0].double().reshape(-1, inputs[0].shape[-1]), inputs[1]
        for expert in {expert for place, _, expert in by_layer if place == layer}:
            x = hidden[(chosen == int(expert)).any(-1)]
            gate, up, down = (by_layer[layer, kind, expert] for kind in ("gate", "up", "down"))
            heard[gate].append(x)
            heard[up].append(x)
            if hasattr(module, "alpha"):  # gpt-oss has biases and limits
                gate_up = x.float() @ module.gate_up_proj[int(expert)] + module.gate_up_proj_bias[int(expert)]
                heard[down].append(module._apply_gate(gate_up).double())
                continue
            silu = nn.functional.silu(x @ model.read(gate).double().T)
            heard[down].append(silu * (x @ model.read(up).double().T))

    handles = []
    for index, layer in enumerate(find_layers(model.network)[1]):
        for path, module in layer.named_modules():
            if path.endswith(".experts") and any(index == place for place, _, _ in by_layer):
                handles.append(module.register_forward_pre_hook(partial(note, index)))
    yield heard
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("family", ROUTED)
def test_stacked_experts_have_their_own_tokens(family: str, tmp_path: Path) -> None:
    bench = make_bench(family, tmp_path)
    before = bench.model.network.get_experts_implementation()
    found = take(bench)
    assert bench.model.network.get_experts_implementation() == before
    with routed(bench.model) as heard:
        run_plainly(bench)
    assert heard and any(map(len, heard.values()))
    for name, inputs in heard.items():
        assert_same(found.read(name, ALL), explicit(inputs, bench.model.components[name].shape[1]), name, 1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_the_diagonal_is_that_of_the_whole_matrix_and_takes_no_such_memory(family: str, tmp_path: Path) -> None:
    bench = make_bench(family, tmp_path)
    whole, diagonal = take(bench, ["hessian"]), take(bench, ["second_moment"])
    for name, component in bench.model.components.items():
        found, expected = diagonal.read(name, ["second_moment"]), whole.read(name, ["hessian"])
        assert found is not None and expected is not None
        assert found["second_moment"].shape == (component.shape[1],)
        torch.testing.assert_close(found["second_moment"], expected["hessian"].diagonal(), rtol=1e-5, atol=1e-9)
        assert diagonal.read(name, ["hessian"]) is None


def test_an_expert_that_nothing_reaches_has_no_tokens(tmp_path: Path) -> None:
    bench = make_bench("mixtral", tmp_path, num_local_experts=24, num_experts_per_tok=1, count=2)
    found = take(bench)
    counts = {name: int(found.read(name, [TOKENS])[TOKENS]) for name in bench.model.components}
    unreached = [name for name, count in counts.items() if not count]
    assert unreached and all(":" in name for name in unreached)
    for name in unreached:
        data = found.read(name, ALL)
        assert not data["hessian"].any() and not data["absmax"].any()


def test_experts_that_see_every_token_count_theirs(tmp_path: Path) -> None:
    """Llama 4 gives each expert all tokens, those of others as zeros."""
    bench = make_bench("llama4", tmp_path, num_local_experts=3, num_experts_per_tok=1)
    found = take(bench)
    tokens = bench.reference.tokens[:, :-1].numel()
    stack = [name for name in bench.model.components if name.startswith("model.layers.0.") and name.endswith(".gate")]
    counts = [int(found.read(name, [TOKENS])[TOKENS]) for name in stack]
    assert len(stack) == 3 and sum(counts) == tokens and all(count < tokens for count in counts)


def test_the_tied_head_sees_continuations(tmp_path: Path) -> None:
    bench = make_bench("qwen2", tmp_path, include=["embed", "q_proj"])
    found = take(bench)
    hidden = torch.cat([bench.model.hidden(t[:, :-1], 6) for _, t in bench.reference.batches()])
    (name,) = [name for name in bench.model.components if "embed" in name]
    assert_same(found.read(name, ALL), explicit([hidden.double().flatten(0, 1)], hidden.shape[-1]), name, 1e-5)


def test_inputs_that_no_product_shows_are_named(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path, include=["embed_tokens", "q_proj"], tie_word_embeddings=False)
    with pytest.raises(
        ModelError, match=r"`model.embed_tokens` cannot be observed: .*exclude it by components.exclude"
    ):
        take(bench)


def test_inputs_that_are_not_finite_are_named(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path)
    bench.model.write("model.layers.0.mlp.up_proj", torch.full((48, 32), 1e30))
    with pytest.raises(ModelError, match=r"inputs of `model.layers.0.mlp.down_proj` hold NaN or infinity"):
        take(bench)


def test_what_has_the_same_inputs_shares_them(tmp_path: Path) -> None:
    found = take(make_bench("llama", tmp_path))
    layer = "model.layers.1."
    (query, key, value, output), (gate, up, down) = (
        [found.read(f"{layer}{where}.{name}_proj", ["hessian"])["hessian"] for name in names]
        for where, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down")))
    )
    assert query is key is value and gate is up
    assert len({id(part) for part in (query, output, gate, down)}) == 4


def test_inputs_that_change_on_the_way_are_not_the_same(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path)
    key = bench.model.network.model.layers[0].self_attn.k_proj

    def change(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        inputs[0].add_(0.5)

    key.register_forward_pre_hook(change)
    found = take(bench)
    with overheard(bench.model) as heard:
        run_plainly(bench)
    for name in ("q", "k", "v"):
        full = f"model.layers.0.self_attn.{name}_proj"
        assert_same(found.read(full, ALL), explicit(heard[full], 32), full, 1e-4)


def test_a_matrix_has_inputs_on_one_side_only(tmp_path: Path) -> None:
    """A square one that is multiplied from the other side says nothing of its inputs."""
    weight_view = make_bench("llama", tmp_path).model.weight_views["model.layers.0.self_attn.q_proj"]
    weight, heard, x = weight_view.parameter, list[Tensor](), torch.randn(2, 3, 32)
    assert weight.shape == (32, 32)
    with MatmulInputs({"q": weight_view}, lambda names, inputs: heard.append(inputs)):
        others = [x @ weight, weight.T @ x.mT, x @ weight.clone().T, weight + 1, weight.shape, weight.dtype]
        assert len(others) == 6 and not heard
        outputs = [x @ weight.T, nn.functional.linear(x, weight), weight @ x.mT, torch.addmm(x[0], x[1], weight.T)]
    assert [len(rows) for rows in heard] == [6, 6, 6, 3] and len(outputs) == 4
    assert all(torch.equal(rows, x.reshape(-1, 32)) for rows in heard[:3])


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_groups_and_files_change_nothing(family: str, tmp_path: Path) -> None:
    bench = make_bench(family, tmp_path)
    whole = take(bench)
    assert whole.passes == 1
    parts = take(bench, memory=MemoryBudget(device=16 * 3 * 4 * 32 * 32, host=8 * 5000))
    assert parts.passes > 2 and parts.spill.held <= 5000
    for name in bench.model.components:
        first, second = whole.read(name, ALL), parts.read(name, ALL)
        assert all(torch.equal(first[key], second[key]) for key in ALL), name
    folder = Path(parts.spill._folder.name)
    assert folder.exists()
    del parts
    gc.collect()
    assert not folder.exists()


def test_a_model_in_bfloat16_adds_up_in_float32(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    model = load_model(ModelSettings(path=str(tmp_path), dtype=DType.bfloat16))
    bench = Bench(model, make_reference(model, 24))
    found = take(bench)
    with overheard(model) as heard:
        run_plainly(bench)
    for name, inputs in heard.items():
        assert_same(found.read(name, ALL), explicit(inputs, model.components[name].shape[1]), name, 1e-6)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "dbrx"])
def test_nothing_is_left_behind(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = make_bench(family, tmp_path)
    network, tokens = bench.model.network, bench.reference.tokens
    before, logits = {n: p.clone() for n, p in network.named_parameters()}, bench.model.logits(tokens, 3)

    def check() -> None:
        for module in network.modules():
            assert not module._forward_hooks and not module._forward_pre_hooks and "forward" not in vars(module)
        assert all(torch.equal(before[n], p) and not p.requires_grad for n, p in network.named_parameters())
        assert torch.overrides._get_current_function_mode() is None
        assert torch.equal(bench.model.logits(tokens, 3), logits)

    take(bench)
    take(bench, last=0)
    check()
    monkeypatch.setitem(
        calibration.CALIBRATION_DATA, "absmax", calibration.Accumulation(lambda width: (), lambda *_: 1 / 0)
    )
    with pytest.raises(ZeroDivisionError):
        take(bench, last=0)
    check()


def test_a_part_of_the_model_is_a_part_of_a_pass(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path, num_hidden_layers=4)
    names = [name for name, component in bench.model.components.items() if component.layer == 1]
    ran = []
    bench.model.network.model.layers[2].register_forward_pre_hook(lambda *_: ran.append(1))
    part = gather(bench.model, bench.reference, names, ALL, last=1)
    assert part.passes == 0.5 and not ran
    whole = take(bench)
    for name in names:
        assert torch.equal(part.read(name, ["hessian"])["hessian"], whole.read(name, ["hessian"])["hessian"])
    assert part.read("model.layers.0.mlp.up_proj", ALL) is None


@pytest.mark.parametrize(
    ("weight", "inputs"),
    [
        ((3, 4, 5), (3, 7, 5)),
        ((3, 4, 5), (7, 5)),
        ((3, 4, 5), (2, 3, 7, 5)),
        ((1, 4, 5), (6, 7, 5)),
        ((4, 5), (2, 7, 5)),
    ],
)
def test_batches_of_matrices_are_paired_as_torch_does(weight: tuple[int, ...], inputs: tuple[int, ...]) -> None:
    w, x = torch.randn(weight).double(), torch.randn(inputs).double()
    product = x @ w.mT
    pairs = list(pair_matrices(w, x))
    assert sum(float((rows @ matrix.T).sum()) for matrix, rows in pairs) == pytest.approx(float(product.sum()))
    assert sum(len(rows) for _, rows in pairs) * 4 == product.numel()


# In a search ------------------------------------------------------------------------------------------------------


@dataclass
class Scaled(Compressor):
    """Divides the columns by 1 + amount · absmax; says what it was given."""

    sequential: bool = False

    name: ClassVar[str] = "scaled"
    needs: ClassVar[frozenset[str]] = frozenset({"hessian", "absmax"})
    given: ClassVar[list[tuple[str, Tensor]]] = []

    def offer(self, component: Component) -> Offer:
        return Offer()

    def compress(self, weight: Tensor, amount: float, context: Context) -> PrunedWeight:
        assert set(context.calibration) == self.needs
        self.given.append((context.component.name, context.calibration["hessian"]))
        return PrunedWeight(weight / (1 + amount * context.calibration["absmax"]), 32)


@dataclass
class Lost(Scaled):
    name: ClassVar[str] = "lost"
    needs: ClassVar[frozenset[str]] = frozenset({"hesian"})


def search_on(bench: Bench, *compressors: Compressor, folder: Path) -> Session:
    treatments = make_treatments(*compressors)
    treatments.installed = Registry(Compressor)
    for entry in installed().compressors.entries.values():
        treatments.installed.add(entry.cls, entry.distribution, entry.version)
    treatments.installed.add(Scaled, "tests", "0")
    chosen = {compressor.name: compressor for compressor in compressors}
    treatments.configured = chosen or {"int8": treatments.configured["int8"]}
    return open_session(bench.model, bench.reference, treatments, {"kl": Kl()}, folder)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    Scaled.given.clear()
    return make_bench("llama", tmp_path / "model", num_hidden_layers=4)


def test_data_are_gathered_once_and_again_after_a_plan_was_kept(bench: Bench, tmp_path: Path) -> None:
    session = search_on(bench, Scaled(), folder=tmp_path)
    first, *_, last = bench.model.components
    plan = {first: Treatment("scaled", 0.5)}
    session.score(ScoreRequest([plan, {last: Treatment("scaled", 0.5)}], ["kl"]))
    assert session.ledger.passes == 2 + 1
    session.sizes(SizeRequest({first: [Treatment("scaled", 0.1)]}))
    session.estimate(EstimateRequest({last: [Treatment("scaled", 0.1)]}, "kl"))
    assert session.ledger.passes == 2 + 1 + 4
    before = dict(Scaled.given)[last]
    session.keep(KeepRequest({first: Treatment("scaled", 0.5)}))
    assert session.rounds.records[0].passes == 7 and session.ledger.passes == 0
    assert session.treatments.calibration is None
    session.sizes(SizeRequest({last: [Treatment("scaled", 0.1)]}))
    assert session.ledger.passes == 1
    after = dict(Scaled.given)[last]
    expected = take(bench).read(last, ["hessian"])["hessian"]
    assert torch.equal(after, expected) and not torch.equal(after, before)


def test_what_is_made_from_data_is_made_once_in_a_round(bench: Bench, tmp_path: Path) -> None:
    session = search_on(bench, Scaled(), folder=tmp_path)
    first, second, *_ = bench.model.components
    half, most = Treatment("scaled", 0.5), Treatment("scaled", 0.9)
    trials: list[Plan] = [{first: half}, {first: half, second: half}, {first: most}]
    scores = session.score(ScoreRequest(trials, ["kl"]))
    assert sorted(name for name, _ in Scaled.given) == sorted([first, first, second])
    assert session.score(ScoreRequest(trials, ["kl"])) == scores and len(Scaled.given) == 3
    session.keep(KeepRequest({second: half}))
    session.score(ScoreRequest([{first: half}], ["kl"]))
    assert [name for name, _ in Scaled.given[3:]] == [second, first]


def test_a_kept_plan_alone_is_one_pass(bench: Bench, tmp_path: Path) -> None:
    session = search_on(bench, Scaled(), folder=tmp_path)
    expected = {name: take(bench).read(name, ["hessian"])["hessian"] for name in bench.model.components}
    session.keep(KeepRequest({name: Treatment("scaled", 0.5) for name in bench.model.components}))
    assert session.rounds.records[0].passes == 1
    assert all(torch.equal(given, expected[name]) for name, given in Scaled.given)


def test_sequential_data_are_those_of_the_model_with_lower_layers_treated(bench: Bench, tmp_path: Path) -> None:
    names = [name for name in bench.model.components if "layers.2" not in name]
    plan = {name: Treatment("int8", 0.75) if "v_proj" in name else Treatment("scaled", 0.5) for name in names}
    session = search_on(bench, Scaled(sequential=True), *[make_treatments().configured["int8"]], folder=tmp_path)
    twin = load_model(ModelSettings(path=str(bench.model.folder)))
    session.keep(KeepRequest(plan))
    assert session.rounds.records[0].passes == (1 + 2 + 4) / 4
    given = dict(Scaled.given)
    for name in names:
        if "v_proj" in name:
            twin.write(name, bench.model.read(name))
    for layer in (0, 1, 3):
        expected = take(Bench(twin, bench.reference))
        inside = [name for name in names if twin.components[name].layer == layer and name in given]
        assert len(inside) == 6
        for name in inside:
            assert torch.equal(given[name], expected.read(name, ["hessian"])["hessian"]), name
        for name in inside:
            twin.write(name, bench.model.read(name))
    for name in twin.components:
        assert torch.equal(twin.read(name), bench.model.read(name))


def test_a_plan_may_name_a_compressor_that_is_not_configured(bench: Bench, tmp_path: Path) -> None:
    session = search_on(bench, folder=tmp_path)
    name = next(iter(bench.model.components))
    session.keep(KeepRequest({name: Treatment("gptq", 0.875)}))
    assert session.rounds.records[0].passes == 1 / 4
    assert session.applied.kept[name].options["bits"] == [4] and session.applied.kept[name].options["order"] == "act"


def test_nothing_is_gathered_where_nothing_needs_it(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrator, "gather", lambda *_: 1 / 0)
    session = search_on(bench, folder=tmp_path)
    plan = {name: Treatment("int8", 0.75) for name in bench.model.components}
    session.score(ScoreRequest([plan], ["kl"]))
    session.keep(KeepRequest(plan))
    assert session.rounds.records[0].passes == 1


def test_data_are_there_while_weights_are_swapped(bench: Bench, tmp_path: Path) -> None:
    """An estimate at a plan compresses anew in the midst of it, from the same data."""
    session = search_on(bench, Scaled(), folder=tmp_path)
    first, *_, last = bench.model.components
    expected = take(bench).read(last, ["hessian"])["hessian"]
    request = EstimateRequest({last: [Treatment("scaled", 0.3)]}, "kl", at={first: Treatment("scaled", 0.5)})
    assert request.ask(session)[last].changes.any()
    assert all(torch.equal(given, expected) for name, given in Scaled.given if name == last)


def test_unknown_and_missing_data_are_named(bench: Bench, tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"`lost` of .* needs the calibration data `hesian`.*did you mean `hessian`"):
        search_on(bench, Lost(), folder=tmp_path).calibrator.prepare(["lost"])
    name = next(iter(bench.model.components))
    with pytest.raises(PlanError, match=r"`scaled` needs absmax, hessian of .* were not gathered"):
        make_treatments(Scaled()).compress(bench.model, {name: Treatment("scaled", 0.5)})


def test_a_streamed_model_gives_the_same_statistics(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    found = []
    for stream in (False, True):
        model = load_model(ModelSettings(path=str(tmp_path), stream=stream), ComponentSettings())
        found.append(take(Bench(model, make_reference(model))))
    for name in found[0].sources:
        assert torch.equal(*(part.read(name, ["hessian"])["hessian"] for part in found)), name
