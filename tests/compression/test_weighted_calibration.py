"""Calibration data in which tokens count by the base's margins, against sums in float64; and as before without."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from compressor.compression.calibration import TOKENS, gather
from compressor.contracts import Compressor
from compressor.resources import MemoryBudget
from compressor.settings import CalibrationWeights
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.wanda import Wanda
from compressor_plugins.quantization.gptq import Gptq
from compressor_plugins.recovery.least_squares import LeastSquares
from compressor_plugins.schedules.uniform import Uniform
from tests.support.calibrations import ALL, assert_same, explicit, overheard, run_plainly
from tests.support.estimates import Bench, make_bench
from tests.support.families import FAMILIES, ODDITIES, each
from tests.support.runs import DATA, make_settings, run
from tests.support.slow import rarely_cases
from tests.support.waits import Waits

Data = Mapping[str, dict[str, Tensor]]


def take(bench: Bench, weights: Tensor | None = None, memory: MemoryBudget | None = None) -> Data:
    """Component -> calibration data, with these weights `[sequence, position]`."""
    reference, names = replace(bench.reference, weights=weights), bench.model.components
    found = gather(bench.model, reference, names, ALL, memory=memory)
    return {name: found.read(name, ALL) or {} for name in names}


def weigh_by_hand(bench: Bench) -> Tensor:
    """`[sequence, position]` in float64: r / mean(r) from sorted probabilities, and 1 inside of prefixes."""
    keep, tokens = bench.reference.continuation_tokens, bench.reference.tokens[:, :-1]
    parts = [bench.model.network(input_ids=part, use_cache=False).logits for part in tokens.split(4)]
    largest = torch.cat(parts)[:, -keep:].double().softmax(-1).sort(-1, descending=True).values
    ratios = largest[..., 1] / largest[..., 0]
    weights = torch.ones(tokens.shape, dtype=torch.float64)
    weights[:, -keep:] = ratios / ratios.mean()
    return weights


@pytest.mark.parametrize("family", each(FAMILIES | ODDITIES))
def test_tokens_count_by_margins(family: str, tmp_path: Path) -> None:
    check_weighted(make_bench(family, tmp_path))


def test_the_tied_head_counts_tokens_that_predict_continuations(tmp_path: Path) -> None:
    check_weighted(make_bench("qwen2", tmp_path, include=["embed", "q_proj"]))


def test_an_expert_that_gets_all_tokens_may_get_them_in_another_order(tmp_path: Path) -> None:
    check_weighted(make_bench("mixtral", tmp_path, num_experts_per_tok=3))


def check_weighted(bench: Bench) -> None:
    """Tokens of experts, whose positions are not known, count the same; so does what is no second moment."""
    alike, expected = take(bench), weigh_by_hand(bench)
    bench.reference.weigh_by_margins()
    weights = bench.reference.weights
    assert weights is not None and weights.dtype == torch.float32
    torch.testing.assert_close(weights.double(), expected, rtol=1e-4, atol=1e-6)
    found = take(bench, weights)
    with overheard(bench.model) as heard:
        run_plainly(bench)
    kept = expected[:, -bench.reference.continuation_tokens :]
    for name, data in found.items():
        view = bench.model.weight_views[name]
        if view.is_expert:
            assert_same(data, alike[name], name, 1e-6)
        elif "embed" in name:
            hidden = [bench.model.hidden(t[:, :-1], kept.shape[1]) for _, t in bench.reference.batches()]
            rows = torch.cat(hidden).double().flatten(0, 1)
            assert_same(data, explicit([rows], rows.shape[-1], kept.flatten()), name, 1e-4)
        elif not name.endswith("dt_proj"):  # Mamba uses its weight, and does not call it
            assert_same(data, explicit(heard[name], view.component.shape[1], expected.flatten()), name, 1e-4)
        assert torch.equal(data["absmax"], alike[name]["absmax"]) and data[TOKENS] == alike[name][TOKENS]
        assert view.is_expert or not torch.allclose(data["hessian"], alike[name]["hessian"], rtol=1e-2)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_equal_weights_are_no_weights(family: str, tmp_path: Path) -> None:
    bench = make_bench(family, tmp_path)
    alike = take(bench)
    equal = take(bench, torch.full((6, bench.reference.tokens.shape[1] - 1), 0.3))
    for name, data in alike.items():
        assert_same(equal[name], data, name, 1e-6)


def test_groups_of_components_change_nothing(tmp_path: Path) -> None:
    bench = make_bench("mixtral", tmp_path)
    bench.reference.weigh_by_margins()
    weights = bench.reference.weights
    whole, parts = take(bench, weights), take(bench, weights, MemoryBudget(device=16 * 3 * 4 * 32 * 32))
    assert all(torch.equal(whole[name][key], parts[name][key]) for name in whole for key in ALL)


def test_by_default_sums_are_those_of_plain_float32_bit_for_bit(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path)
    found = take(bench)
    with overheard(bench.model) as heard:
        run_plainly(bench)
    for name, inputs in heard.items():
        width = bench.model.components[name].shape[1]
        hessian, second_moment, tokens = torch.zeros(width, width), torch.zeros(width), torch.tensor(0)
        for x in (part.float() for part in inputs):
            hessian.addmm_(x.mT, x)
            second_moment += x.square().sum(0)
            tokens += len(x)
        assert torch.equal(found[name]["hessian"], hessian / tokens), name
        assert torch.equal(found[name]["second_moment"], second_moment / tokens), name


def test_weights_do_not_wait_for_the_device(tmp_path: Path) -> None:
    bench = make_bench("llama", tmp_path)
    bench.reference.weigh_by_margins()
    counts = []
    for weights in (None, bench.reference.weights):
        with Waits() as waits:
            take(bench, weights)
        counts.append(waits.count)
    assert counts[0] == counts[1] > 0


@pytest.mark.parametrize(
    ("compressor", "recovers", "changes"),
    [
        (Gptq(group=16), False, True),
        (Wanda(), False, True),
        *rarely_cases([(Magnitude(), False, False), (Magnitude(), True, True)]),
    ],
)
def test_a_run_takes_them(compressor: Compressor, recovers: bool, changes: bool, tmp_path: Path) -> None:
    """Also with metrics that do not read the base; what needs no second moments stays as it is."""
    weights = {}
    for calibration in CalibrationWeights:
        settings = make_settings(
            Uniform(),
            compressor,
            data=replace(DATA, calibration=calibration),
            metric={"fdtm": Fdtm()},
            recovery=LeastSquares() if recovers else None,
        )
        assert run(tmp_path / calibration.value, settings).status == "done"
        paths = sorted((tmp_path / calibration.value / "model").glob("*.safetensors"))
        weights[calibration] = [load_file(path) for path in paths]
    (before,), (after,) = weights.values()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before) is changes
