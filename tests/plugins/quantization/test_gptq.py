"""GPTQ against a plain loop of its definition in float64, its bound, and its corner cases; runs from end to end."""

import json
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compressor.artifacts.plan_file import write_plan
from compressor.contracts import Component, Context, QuantizedMatrix, Schedule, Treatment
from compressor.errors import ConfigError, ModelError
from compressor.settings import ComponentSettings
from compressor_plugins import calibration_warnings
from compressor_plugins.quantization import gptq
from compressor_plugins.quantization.gptq import Gptq, Order
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.beam.beam import Beam
from compressor_plugins.schedules.budget.budget import Budget
from compressor_plugins.schedules.plan import ReplayedPlan
from compressor_plugins.schedules.uniform import Uniform
from tests.support.runs import make_settings, run
from tests.support.slow import rarely

NAME = "model.layers.0.mlp.up_proj"
examples = settings(max_examples=40, deadline=None)
seeds, widths = st.integers(0, 10**6), st.integers(1, 40)


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    calibration_warnings.given.clear()


def component_of(weight: Tensor) -> Component:
    out, width = weight.shape
    return Component(NAME, "up", 0, (out, width), weight.element_size() * 8)


def quantize(compressor: Gptq, weight: Tensor, hessian: Tensor, bits: int = 4, tokens: int = 10**6) -> QuantizedMatrix:
    component = component_of(weight)
    context = Context(component, calibration={"hessian": hessian, "tokens": torch.tensor(tokens)})
    return compressor.compress(weight, 1 - bits / component.stored_bits, context)


def round_plainly(weight: Tensor, bits: int, group: int) -> QuantizedMatrix:
    component = component_of(weight)
    return Rtn([bits], group).compress(weight, 1 - bits / component.stored_bits, Context(component))


def draw(
    seed: int, out: int, width: int, spread: float = 1.0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, ...]:
    """A weight, and the second moment of inputs that go together and differ in size, float32 as it is gathered."""
    generator = torch.Generator().manual_seed(seed)
    weight, mixed = (torch.randn(rows, width, generator=generator) for rows in (out, width))
    sizes = torch.exp(torch.randn(width, generator=generator))
    inputs = torch.randn(3 * width, width, generator=generator) @ mixed * sizes
    return weight.to(dtype), inputs.T @ inputs / len(inputs)


class ByHand(NamedTuple):
    """What the plain loop finds: `integers`, how near each was to a tie, in steps; by row, the sum of what every

    column costs, and the most that it can be where nothing is `clamped`.
    """

    integers: Tensor
    ties: Tensor
    cost: Tensor
    bound: Tensor
    clamped: Tensor


def by_hand(weight: Tensor, hessian: Tensor, compressor: Gptq, bits: int) -> ByHand:
    """By the update of the whole inverse after every column, in float64."""
    out, width = weight.shape
    half, plain = 2 ** (bits - 1), round_plainly(weight, bits, compressor.group)
    sizes, columns = hessian.diagonal().tolist(), list(range(width))
    if compressor.order is Order.act:
        columns.sort(key=lambda j: -sizes[j])
    w, inverse, done = weight.double().clone(), torch.linalg.inv(damp(hessian, compressor.damping)), []
    integers, ties = torch.zeros(out, width, dtype=torch.int8), torch.ones(out, width).double()
    cost, bound, clamped = torch.zeros(out).double(), torch.zeros(out).double(), torch.zeros(out, dtype=torch.bool)
    for j in columns:
        scale = plain.scales[:, j // plain.group].double()
        ratio = w[:, j] / scale
        q = ratio.round().clamp(-half, half - 1)
        integers[:, j], ties[:, j] = q.to(torch.int8), ((ratio - ratio.floor()) - 0.5).abs()
        clamped |= (ratio - q).abs() > 0.5
        cost += (w[:, j] - scale * q) ** 2 / inverse[j, j]
        bound += (scale / 2) ** 2 / inverse[j, j]
        done.append(j)
        w -= torch.outer((w[:, j] - scale * q) / inverse[j, j], inverse[j])
        inverse = inverse - torch.outer(inverse[:, j], inverse[j]) / inverse[j, j]
        w[:, done], inverse[done], inverse[:, done] = 0.0, 0.0, 0.0
    return ByHand(integers, ties, cost, bound, clamped)


def damp(hessian: Tensor, damping: float) -> Tensor:
    """H + λI in float64."""
    h = hessian.double()
    return h + damping * h.diagonal().mean() * torch.eye(len(h)).double()


def loss(weight: Tensor, dense: Tensor, hessian: Tensor) -> Tensor:
    """`[out]`: (w − ŵ) H (w − ŵ)ᵀ of every row."""
    error = weight.double() - dense.double()
    return ((error @ hessian.double()) * error).sum(1)


@given(seeds, widths, st.integers(2, 8), st.integers(1, 50), st.sampled_from(Order), st.sampled_from([0.01, 0.3]))
@examples
def test_integers_are_those_of_the_plain_loop(
    seed: int, width: int, bits: int, group: int, order: Order, damping: float
) -> None:
    weight, hessian = draw(seed, 4, width)
    compressor = Gptq([bits], group, damping, order, block=7)
    found, expected = quantize(compressor, weight, hessian, bits), by_hand(weight, hessian, compressor, bits)
    clear = (expected.ties > 1e-6).all(1)  # after a tie everything may differ
    assert torch.equal(found.integers[clear], expected.integers[clear])


@given(seeds, widths, st.integers(1, 50), st.sampled_from(Order))
@examples
def test_blocks_only_save_time(seed: int, width: int, block: int, order: Order) -> None:
    weight, hessian = draw(seed, 4, width)
    alone, together = (quantize(Gptq(order=order, block=size), weight, hessian) for size in (1, block))
    assert torch.equal(alone.integers, together.integers)


@given(seeds, widths, st.integers(2, 8), st.integers(1, 50))
@examples
def test_inputs_that_have_nothing_in_common_give_round_to_nearest(seed: int, width: int, bits: int, group: int) -> None:
    weight, hessian = draw(seed, 4, width, dtype=torch.float32)
    for diagonal in (torch.eye(width), hessian.diagonal().diag()):
        found = quantize(Gptq([bits], group), weight, diagonal, bits)
        assert torch.equal(found.integers, round_plainly(weight, bits, group).integers)


@given(seeds, widths, st.integers(2, 8), st.sampled_from(Order))
@examples
def test_the_error_is_what_the_columns_cost(seed: int, width: int, bits: int, order: Order) -> None:
    """(w − ŵ) (H + λI) (w − ŵ)ᵀ = Σ_j (w_j − ŵ_j)² / H⁻¹_jj, with w_j and H⁻¹ as they are when column j is rounded.

    Where nothing is clamped that is at most Σ_j (s_j / 2)² / H⁻¹_jj, the bound of Babai's nearest plane: the one
    statement about the size of the error that holds for every single row.
    """
    weight, hessian = draw(seed, 8, width)
    compressor = Gptq([bits], 8, order=order)
    found, expected = quantize(compressor, weight, hessian, bits), by_hand(weight, hessian, compressor, bits)
    clear = (expected.ties > 1e-6).all(1)
    error = loss(weight, found.dense(), damp(hessian, compressor.damping))
    torch.testing.assert_close(error[clear], expected.cost[clear], rtol=1e-6, atol=1e-9)
    free = clear & ~expected.clamped
    assert (error[free] <= expected.bound[free] * (1 + 1e-6)).all()


@given(seeds, st.integers(8, 40), st.integers(2, 8), st.sampled_from(Order))
@examples
def test_the_error_is_below_that_of_round_to_nearest(seed: int, width: int, bits: int, order: Order) -> None:
    """Not for every row: a greedy choice may go wrong. Over 64 rows it does not."""
    weight, hessian = draw(seed, 64, width)
    found = quantize(Gptq([bits], 16, order=order), weight, hessian, bits)
    ours, plain = (loss(weight, w.dense(), hessian).sum() for w in (found, round_plainly(weight, bits, 16)))
    assert ours <= plain * 1.02


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("width", "group"), [(64, 16), (75, 32), (75, 128), (1, 4)])
def test_what_is_scored_is_what_is_shipped(dtype: torch.dtype, width: int, group: int) -> None:
    weight, hessian = draw(0, 19, width, dtype=dtype)
    before = weight.clone()
    found = quantize(Gptq([3], group), weight, hessian, 3)
    plain = round_plainly(weight, 3, group)
    assert torch.equal(weight, before) and torch.equal(found.scales, plain.scales) and found.bits == plain.bits
    assert found.integer_bits == 3 and found.quantized is found
    assert found.integers.min() >= -4 and found.integers.max() <= 3 and found.dense().dtype is dtype
    assert width == 1 or loss(weight, found.dense(), hessian).sum() < loss(weight, plain.dense(), hessian).sum()


def test_columns_without_input_are_rounded_to_nearest() -> None:
    weight, hessian = draw(1, 8, 40, dtype=torch.float32)
    dead = [0, 7, 39]
    hessian[dead], hessian[:, dead] = 0, 0
    for order in Order:
        found, plain = quantize(Gptq([4], 16, order=order), weight, hessian), round_plainly(weight, 4, 16)
        assert torch.equal(found.integers[:, dead], plain.integers[:, dead])
        assert not torch.equal(found.integers, plain.integers)
        others = weight.clone()
        others[:, dead] *= -1  # of the same size, so that scales stay
        alive = [j for j in range(40) if j not in dead]
        assert torch.equal(
            quantize(Gptq([4], 16, order=order), others, hessian).integers[:, alive], found.integers[:, alive]
        )


def test_without_tokens_it_is_round_to_nearest(caplog: pytest.LogCaptureFixture) -> None:
    weight, hessian = draw(2, 8, 40)
    for _ in range(3):
        found = quantize(Gptq([4], 16), weight, torch.zeros_like(hessian), tokens=0)
    assert torch.equal(found.integers, round_plainly(weight, 4, 16).integers)
    assert caplog.messages == [
        f"gptq: no calibration token reached `{NAME}`, so it is rounded to nearest; raise data.prefixes"
    ]


def test_few_tokens_are_said_once_and_damped(caplog: pytest.LogCaptureFixture) -> None:
    weight, _ = draw(3, 8, 40)
    inputs = torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    hessian = inputs.T @ inputs / 5
    for _ in range(2):
        found = quantize(Gptq([4], 16), weight, hessian, tokens=5)
    assert (
        loss(weight, found.dense(), hessian).sum()
        < 0.2 * loss(weight, round_plainly(weight, 4, 16).dense(), hessian).sum()
    )
    (message,) = caplog.messages
    assert (
        f"`{NAME}` has only 5 calibration tokens for 40 inputs, so damping has a large effect; raise data.prefixes"
        in message
    )


def test_a_hessian_that_is_not_positive_definite_gets_more_damping(caplog: pytest.LogCaptureFixture) -> None:
    """As rounding may leave one: damping 10⁻⁶ is not enough for an eigenvalue of −0.05."""
    weight, _ = draw(4, 8, 40)
    hessian = torch.eye(40)
    hessian[0, 1] = hessian[1, 0] = 1.05
    for _ in range(2):
        found = quantize(Gptq([4], 16, damping=1e-6), weight, hessian)
    assert found.dense().isfinite().all()
    assert caplog.messages == [
        f"gptq: the Hessian of `{NAME}` is not positive definite with damping 1e-06; 0.1 is used"
    ]


def test_zeros_and_sizes() -> None:
    weight, hessian = draw(5, 8, 40, dtype=torch.float32)
    assert not quantize(Gptq(), torch.zeros_like(weight), hessian).dense().any()
    usual = quantize(Gptq(), weight, hessian).integers
    for size in (1e-12, 1e12):
        assert torch.equal(quantize(Gptq(), weight, (hessian.double() * size).float()).integers, usual)


def test_many_widths_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, hessian = draw(6, 8, 40)
    component, factors = component_of(weight), []
    original = gptq.factor_hessian
    monkeypatch.setattr(
        "compressor_plugins.quantization.gptq.factor_hessian", lambda *a: factors.append(1) or original(*a)
    )
    context = Context(component, calibration={"hessian": hessian, "tokens": torch.tensor(99)})
    compressor = Gptq([2, 3, 4, 8], 16)
    found = list(compressor.compress_each(weight, compressor.offer(component).levels, context))
    assert len(factors) == 1 and [part.integer_bits for part in found] == [2, 3, 4, 8]
    losses = [float(loss(weight, part.dense(), hessian).sum()) for part in found]
    assert losses == sorted(losses, reverse=True)


@pytest.mark.parametrize(
    ("compressor", "message"),
    [
        (Gptq(group=0), "`compressor.gptq.group` must be at least 1, got 0; give for example 32"),
        (
            Gptq(bits=[]),
            "`compressor.gptq.bits` must be different widths from 2 to 8, got []; give for example [3,4,8]",
        ),
        (Gptq(damping=0.0), "`compressor.gptq.damping` must be positive and finite, got 0.0; give for example 0.01"),
        (Gptq(block=0), "`compressor.gptq.block` must be at least 1, got 0; give for example 128"),
    ],
)
def test_options_are_checked(compressor: Gptq, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compressor.offer(component_of(torch.zeros(2, 4)))
    assert str(caught.value) == message


def test_weights_that_are_not_finite_are_named() -> None:
    weight, hessian = draw(7, 8, 40)
    weight[2, 3] = torch.nan
    with pytest.raises(ModelError, match=f"weight of `{NAME}` contains NaN or infinity"):
        quantize(Gptq(), weight, hessian)


# From end to end --------------------------------------------------------------------------------------------------

FEW = ComponentSettings(include=[r"layers\.[01]\..*(q_proj|down_proj)"])
SCHEDULES: dict[str, Schedule] = {
    "uniform": Uniform(),
    "beam": Beam(width=2, count=3, ranker="kl"),
    "budget": Budget(targets=[0.6], corrections=1),
}


@pytest.mark.parametrize("schedule", ["budget", *rarely(["uniform", "beam"])])
def test_schedules_run_with_it(schedule: str, tmp_path: Path) -> None:
    compressors = [Gptq([4], 16), Rtn([8])] if schedule == "budget" else [Gptq([4], 16)]
    record = run(tmp_path, make_settings(SCHEDULES[schedule], *compressors, components=FEW))
    assert record.status == "done"
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert '"gptq"' in json.dumps(plan)
    treated = {record.components[name].layer for name, entry in plan.items() if entry["compressor"] == "gptq"}
    kept = sum(layer + 1 for layer in treated) / 6  # each layer's calibration runs what is below, and itself
    dtype = 1 / 6  # what the first layer gives tells in which dtype the model is saved
    found = record.rounds[0]
    if schedule != "budget":
        assert found.passes == pytest.approx(dtype + (schedule != "uniform") + found.trials + kept)


@pytest.mark.slow
def test_a_plan_is_done_again(tmp_path: Path) -> None:
    """The plan names all options, so that it means the same where nothing is configured; and kl is below rtn's."""
    names = [f"model.layers.{layer}.mlp.down_proj" for layer in (0, 1, 2)]
    scores, weights = {}, []
    for name, treatment in (("gptq", Treatment("gptq", 0.75, {"group": 32})), ("rtn", Treatment("rtn", 0.75))):
        folder = tmp_path / name
        folder.mkdir()
        write_plan(dict.fromkeys(names, treatment), folder / "given.json")
        record = run(folder / "first", make_settings(ReplayedPlan(str(folder / "given.json"))))
        scores[name] = record.rounds[0].scores["kl"].mean
    for folder, path in (("again", tmp_path / "gptq" / "first" / "plan.json"),):
        run(tmp_path / folder, make_settings(ReplayedPlan(str(path))))
    weights = [(tmp_path / where / "model" / "model.safetensors").read_bytes() for where in ("gptq/first", "again")]
    assert weights[0] == weights[1]
    assert scores["gptq"] < scores["rtn"]
