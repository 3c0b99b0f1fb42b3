"""Wanda and SparseGPT against llmcompressor: where it is installed, and by its recorded weights everywhere."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from compressor_plugins import calibration_warnings
from compressor_plugins.pruning.selection import Scope
from compressor_plugins.pruning.sparsegpt import SparseGpt
from compressor_plugins.pruning.wanda import Wanda
from tests.support.pruning import make_context
from tests.support.pruning_peer import CASES, PEER, Case, ask_peer, read_recorded

ROUNDING = 1e-5
"""The peer factors H in float32."""


@pytest.fixture(autouse=True)
def no_warning_was_given() -> Iterator[None]:
    calibration_warnings.given.clear()
    yield


@pytest.fixture
def peer() -> None:
    """Skips the test where llmcompressor is not installed."""
    reason = "llmcompressor is not installed; tests/support/pruning_peer.py says how"
    pytest.importorskip(f"{PEER}.sparsegpt.sgpt_sparsify", reason=reason, exc_type=ImportError)


def prune(case: Case) -> Tensor:
    return case.pruner.compress(case.weight, case.amount, make_context(case.weight, case.inputs)).dense()


def assert_same(case: Case, found: Tensor, expected: Tensor) -> None:
    """The same weights are zero; Wanda's others keep their bits, SparseGPT's are equal up to rounding."""
    assert found.dtype == expected.dtype == case.dtype
    assert torch.equal(found == 0, expected == 0)
    if isinstance(case.pruner, Wanda):
        assert torch.equal(found, expected)
    assert (found - expected).norm() <= ROUNDING * expected.norm()
    assert (found - expected).abs().max() <= ROUNDING * expected.abs().max()


def test_every_case_is_recorded() -> None:
    assert read_recorded().keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_that_were_recorded(name: str) -> None:
    assert_same(CASES[name], prune(CASES[name]), read_recorded()[name])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("name", CASES)
def test_weights_are_those_of_the_peer(name: str) -> None:
    expected = ask_peer(CASES[name])
    assert_same(CASES[name], prune(CASES[name]), expected)
    assert_same(CASES[name], read_recorded()[name], expected)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("pruner", [Wanda(), Wanda(pattern="2:4"), SparseGpt(block=32), SparseGpt(pattern="2:4")])
def test_larger_weights_are_those_of_the_peer(pruner: Wanda | SparseGpt, seed: int) -> None:
    case = Case(pruner, seed=100 + seed, shape=(64, 128))
    assert_same(case, prune(case), ask_peer(case))


# Where the results differ, by a decision ---------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("peer")
def test_here_counts_are_rounded_to_the_nearest() -> None:
    """Wanda: 0.35 · 64 = 22.4 and 0.3 · 64 = 19.2 are rounded down by both, 0.45 · 64 = 28.8 only there."""
    for amount, ours, theirs in ((0.35, 22, 22), (0.3, 19, 19), (0.45, 29, 28)):
        case = Case(Wanda(), amount)
        assert [(weight == 0).sum(1).unique().tolist() for weight in (prune(case), ask_peer(case))] == [
            [ours],
            [theirs],
        ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("peer")
def test_here_a_block_does_not_lose_one_weight_more() -> None:
    """SparseGPT: the peer, like the paper's code, loses the weights up to the one after the last, inclusive."""
    case = Case(SparseGpt(block=16))
    size = 24 * 64
    assert (prune(case) == 0).sum() == size // 2
    assert (ask_peer(case, case.amount) == 0).sum() == size // 2 + 64 // 16


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("peer")
def test_here_dead_inputs_lose_no_more_than_the_amount() -> None:
    """SparseGPT: the peer zeroes all weights of a dead input, and its damping depends on the size of the others."""
    dead = list(range(0, 64, 4))
    case = Case(SparseGpt(), amount=0.125, dead=dead)
    found, expected = prune(case), ask_peer(case)
    assert (found == 0).sum() == 24 * 8 and (expected == 0).sum() == 24 * 16
    assert not ((found == 0) & (expected != 0)).any()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("scope", Scope)
def test_here_the_smallest_weights_of_dead_inputs_go_first(scope: Scope) -> None:
    """Wanda: the peer takes those of the lowest index, and zeros are not among the first."""
    case = Case(Wanda(scope), amount=0.125, dead=list(range(0, 64, 4)))
    found, expected, dead = prune(case), ask_peer(case), case.weight[:, case.dead].abs()
    for pruned in (found, expected):
        assert (pruned == 0).sum() == 24 * 8 == (pruned[:, case.dead] == 0).sum()
    gone = found[:, case.dead] == 0
    for ranked, is_gone in [(dead, gone)] if scope is Scope.matrix else zip(dead, gone, strict=True):
        assert ranked[is_gone].max() < ranked[~is_gone].min()
    assert (expected[:, case.dead[:8]] == 0).all()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("peer")
@pytest.mark.parametrize("seed", range(5))
def test_here_rounding_to_the_dtype_is_compensated_too(seed: int) -> None:
    """SparseGPT in bfloat16: the peer rounds in the end; here later columns make up for that, which shows at 12.5 %."""
    case = Case(SparseGpt(), amount=0.125, seed=seed, dtype=torch.bfloat16)
    hessian = make_context(case.weight, case.inputs).calibration["hessian"].double()
    errors = [case.weight.double() - weight.double() for weight in (prune(case), ask_peer(case))]
    ours, theirs = (((error @ hessian) * error).sum() for error in errors)
    assert ours < theirs
