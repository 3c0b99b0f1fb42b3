"""The Fisher information against squared gradients by autograd in float64, one sequence after the other."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from compressor.compression.calibration import Calibration, gather
from compressor.compression.fisher import FISHER_DIAGONAL, draw_uniform, score_drawn_labels
from compressor.contracts import Treatment
from compressor.errors import ModelError
from compressor.models import load_model
from compressor.resources import MemoryBudget
from compressor.settings import ComponentSettings, ModelSettings
from compressor_plugins.pruning.obd import Obd
from tests.support.estimates import KEEP, Bench, Oracle, make_bench, make_reference, make_treatments
from tests.support.families import FAMILIES, each, save_checkpoint


def take(bench: Bench, memory: MemoryBudget | None = None) -> Calibration:
    return gather(bench.model, bench.reference, bench.model.components, [FISHER_DIAGONAL], memory=memory)


def read(found: Calibration, name: str) -> Tensor:
    data = found.read(name, [FISHER_DIAGONAL])
    assert data is not None
    return data[FISHER_DIAGONAL]


def find_by_hand(bench: Bench) -> dict[str, Tensor]:
    """`[out, in]` in float64: Σ_s (∂ Σ_i ln p(y_si) / ∂W)² / (S M)."""
    oracle = Oracle(bench)
    parameters = {id(view.parameter): view.parameter for view in oracle.model.weight_views.values()}
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    found = {name: torch.zeros(c.shape, dtype=torch.float64) for name, c in bench.model.components.items()}
    count = len(bench.reference.tokens)
    for index, tokens in enumerate(bench.reference.tokens):
        known = oracle.run(tokens).log_softmax(-1)
        draws = torch.rand(KEEP, generator=torch.Generator().manual_seed(index))
        labels = [int((row.detach().exp().cumsum(0) >= u).nonzero()[0]) for row, u in zip(known, draws, strict=True)]
        loss = sum((row[label] for row, label in zip(known, labels, strict=True)), torch.tensor(0.0))
        for name, total in found.items():
            total += oracle.slopes(name, loss).square() / (count * KEEP)
    return found


@pytest.mark.parametrize("family", each(FAMILIES))
def test_it_is_the_mean_of_squared_gradients(family: str, tmp_path: Path) -> None:
    bench = make_bench(family, tmp_path, count=3, batch=2)
    found, expected = take(bench), find_by_hand(bench)
    assert found.passes == 4 and found.names == {FISHER_DIAGONAL}
    for name, component in bench.model.components.items():
        given = read(found, name)
        assert given.shape == component.shape and given.dtype is torch.float32
        error, size = (given - expected[name]).abs().max(), expected[name].max()
        assert error <= 1e-3 * size, f"{name} is off by {error} of {size}"


def test_labels_are_drawn_from_the_model() -> None:
    """Over all draws the mean score is that of the distribution: −H in expectation."""
    logits = torch.tensor([[[2.0, 0.0, -1.0, -torch.inf]]])
    draws = (torch.arange(1000) + 0.5)[:, None] / 1000
    scores = score_drawn_labels(logits.expand(1000, 1, 4), draws)
    p = logits[0, 0].softmax(0)
    for chosen in p[:3]:
        assert (scores.exp() - chosen).abs().lt(1e-5).double().mean() == pytest.approx(float(chosen), abs=2e-3)


def test_draws_are_those_of_the_sequence() -> None:
    whole = draw_uniform(0, 5, 7)
    assert torch.equal(whole[2:4], draw_uniform(2, 2, 7)) and len(whole.unique()) == 35


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_groups_batches_and_files_change_nothing(family: str, tmp_path: Path) -> None:
    bench = make_bench(family, tmp_path)
    whole = take(bench)
    parts = take(bench, MemoryBudget(device=16 * 3 * 4 * 32 * 32, host=8 * 5000))
    assert parts.passes > 2 * whole.passes and parts.spill.held <= 5000
    others = take(Bench(bench.model, make_reference(bench.model, batch=1)))
    for name in bench.model.components:
        assert torch.equal(read(whole, name), read(parts, name)), name
        torch.testing.assert_close(read(whole, name), read(others, name), rtol=1e-4, atol=1e-9)


def test_it_comes_with_data_of_inputs(tmp_path: Path) -> None:
    """Query, key and value share their inputs, and have each their own gradients."""
    bench = make_bench("llama", tmp_path)
    names = ["second_moment", FISHER_DIAGONAL]
    found, alone = gather(bench.model, bench.reference, bench.model.components, names), take(bench)
    assert found.passes == 5 and alone.read("model.layers.0.mlp.up_proj", ["second_moment"]) is None
    first, second = (found.read(f"model.layers.0.mlp.{part}_proj", names) for part in ("gate", "up"))
    assert first is not None and second is not None and first["second_moment"] is second["second_moment"]
    assert not torch.equal(first[FISHER_DIAGONAL], second[FISHER_DIAGONAL])
    for name in bench.model.components:
        assert torch.equal(read(found, name), read(alone, name))


def test_a_streamed_model_gives_the_same(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    found = []
    for stream in (False, True):
        model = load_model(ModelSettings(path=str(tmp_path), stream=stream), ComponentSettings())
        found.append(take(Bench(model, make_reference(model))))
    for name in found[0].sources:
        assert torch.equal(*(read(part, name) for part in found)), name


def test_gradients_that_are_not_finite_are_named(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path)
    bench.model.write("model.layers.0.mlp.up_proj", torch.full((48, 32), torch.nan))
    with pytest.raises(ModelError, match=r"gradient of `model\.layers\..*` holds NaN or infinity.*components.exclude"):
        take(bench)


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    bench = make_bench("mixtral", tmp_path)
    before = {name: parameter.clone() for name, parameter in bench.model.network.named_parameters()}
    state = torch.get_rng_state()
    take(bench)
    assert torch.equal(torch.get_rng_state(), state)
    for name, parameter in bench.model.network.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None and not parameter.requires_grad
    for module in bench.model.network.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


def test_the_saliency_is_the_divergence_of_a_pruned_weight(tmp_path: Path) -> None:
    """w² F / 2 against the KL divergence that each weight alone causes, over many sequences."""
    bench = make_bench("llama", tmp_path, count=96, batch=32)
    name = "model.layers.1.mlp.down_proj"
    fisher, weight = read(take(bench), name), bench.model.read(name)
    predicted = (weight.square() * fisher / 2).flatten()
    chosen = predicted.argsort(descending=True)[:40:4]
    base = torch.cat([bench.model.logits(t[:, :-1], KEEP) for _, t in bench.reference.batches()]).double()
    p = base.log_softmax(-1)
    measured = []
    for index in chosen:
        pruned = weight.clone().flatten()
        pruned[index] = 0
        with bench.model.swapped({name: pruned.view(weight.shape)}):
            q = torch.cat([bench.model.logits(t[:, :-1], KEEP) for _, t in bench.reference.batches()]).double()
        measured.append(float((p.exp() * (p - q.log_softmax(-1))).sum(-1).mean()))
    ratios = predicted[chosen].double() / torch.tensor(measured)
    assert 0.8 < ratios.median() < 1.25 and ratios.min() > 0.5 and ratios.max() < 2


def test_a_compressor_gets_it_from_a_run(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path)
    bench.treatments = make_treatments(Obd())
    bench.treatments.calibration = found = take(bench)
    name = "model.layers.0.mlp.up_proj"
    pruned = bench.treatments.compress_one(bench.model, name, Treatment("obd", 0.5)).dense()
    saliency = bench.model.read(name).square() * read(found, name)
    assert saliency[pruned == 0].max() <= saliency[pruned != 0].min() * (1 + 1e-5)
