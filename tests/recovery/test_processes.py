"""Two processes that train together: each owns half of the optimizer, and the result is that of one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from compressor.contracts.recovery import Loss
from compressor.recovery.processes import Processes
from compressor.recovery.training_cost import count_cost
from compressor.settings import DType
from compressor_plugins.recovery.finetune import Finetune
from tests.support.slow import rarely
from tests.support.train_together import STEPS, make_optimizer, take_step
from tests.support.trainers import load_family
from tests.support.two_processes import run_two


@pytest.mark.parametrize("dtype", [DType.bfloat16, *rarely([DType.float32])])
def test_two_processes_update_as_one_does(dtype: DType, tmp_path: Path) -> None:
    optimizer = make_optimizer(tmp_path, dtype, Processes())
    for step in range(STEPS):
        take_step(optimizer, step, [0, 1])
    ended = run_two(tmp_path, "-m", "tests.support.train_together", str(tmp_path), dtype.name)
    assert [each.returncode for each in ended] == [0, 0], ended[0].stderr + ended[1].stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    for ours, one, other in zip(optimizer.changed, first["weights"], second["weights"], strict=True):
        assert torch.equal(one, other) and torch.equal(one == 0, ours == 0)
        torch.testing.assert_close(one, ours.detach(), rtol=1e-2, atol=1e-5)
    state: dict[str, Tensor] = optimizer.list_state()
    assert first["state"].keys() == state.keys() and not second["state"]
    for name, tensor in state.items():
        torch.testing.assert_close(first["state"][name], tensor, rtol=1e-3, atol=1e-5)
    whole = sum(each.numel() for name, each in state.items() if not name.startswith("weight"))
    assert first["own"] + second["own"] == whole and max(first["own"], second["own"]) < 0.6 * whole


@given(st.lists(st.integers(1, 10**12), max_size=40), st.integers(1, 9))
def test_all_processes_own_about_as_much(sizes: list[int], count: int) -> None:
    owners = Processes(count=count).choose_owners(sizes)
    owned = [sum(size for size, owner in zip(sizes, owners, strict=True) if owner == rank) for rank in range(count)]
    assert sum(owned) == sum(sizes)
    assert max(owned) - min(owned) <= max(sizes, default=0)


@pytest.mark.parametrize(("dtype", "count", "wanted"), [
    (DType.bfloat16, 1, 16), (DType.bfloat16, 2, 8), (DType.bfloat16, 4, 5), (DType.bfloat16, 8, 3.5),
    (DType.float32, 1, 12), (DType.float32, 2, 8),
])  # fmt: skip
def test_memory_is_shared(dtype: DType, count: int, wanted: float, tmp_path: Path) -> None:
    """Bytes for each weight beside the models, as docs/recovery.md has them."""
    model = load_family("llama", tmp_path, dtype)
    recovery = Finetune(loss=Loss.language_modelling, embeddings=True)
    cost = count_cost(recovery, model, processes=count)
    weights = sum(parameter.numel() for parameter in model.network.parameters())
    assert cost.memory - cost.count_batch(recovery.batch) == pytest.approx(wanted * weights, abs=1)
