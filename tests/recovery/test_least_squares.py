"""Least squares of pruned rows against numpy's solver, row by row."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compressor.errors import ModelError
from compressor.recovery.least_squares import solve_rows


def make_case(seed: int, out: int = 5, width: int = 12, tokens: int = 40) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, width, generator=generator) @ torch.randn(width, width, generator=generator)
    weight = torch.randn(out, width, generator=generator)
    remaining = torch.rand(out, width, generator=generator) < torch.rand(out, 1, generator=generator)
    return inputs, weight, remaining, inputs.T @ inputs / tokens


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_each_row_is_what_numpy_finds(seed: int) -> None:
    """Ridge regression towards w_S: the system of the inputs, with rows of √λ below it."""
    inputs, weight, remaining, hessian = make_case(seed)
    found = solve_rows(weight, remaining, hessian, 0.01)
    extent = 0.01 * float(hessian.double().diagonal().mean())
    for row, (w, kept) in enumerate(zip(weight.double().numpy(), remaining.numpy(), strict=True)):
        scaled = inputs.double().numpy() / np.sqrt(len(inputs))
        system = np.vstack([scaled[:, kept], np.sqrt(extent) * np.eye(kept.sum())])
        goal = np.concatenate([scaled @ w, np.sqrt(extent) * w[kept]])
        wanted = np.zeros(len(w))
        if kept.any():
            wanted[kept] = np.linalg.lstsq(system, goal, rcond=None)[0]
        np.testing.assert_allclose(found[row].double().numpy(), wanted, rtol=1e-4, atol=1e-5)


@given(st.integers(0, 10_000))
@settings(max_examples=30)
def test_outputs_change_less_than_without_it_and_zeros_stay(seed: int) -> None:
    inputs, weight, remaining, hessian = make_case(seed)
    pruned = torch.where(remaining, weight, 0)
    found = solve_rows(weight, remaining, hessian, 1e-4)
    before, after = (((each - weight) @ inputs.T).square().sum() for each in (pruned, found))
    assert float(after) <= float(before) * (1 + 1e-5)
    assert not found[~remaining].any()


def test_what_is_not_pruned_stays() -> None:
    _, weight, remaining, hessian = make_case(1)
    torch.testing.assert_close(solve_rows(weight, torch.ones_like(remaining), hessian, 0.01), weight)


def test_inputs_that_are_always_zero_leave_their_weights_as_they_are() -> None:
    _, weight, remaining, hessian = make_case(2)
    hessian[3] = hessian[:, 3] = 0
    found = solve_rows(weight, remaining, hessian, 0.01)
    torch.testing.assert_close(found[:, 3], torch.where(remaining, weight, 0)[:, 3])
    assert torch.equal(
        solve_rows(weight, remaining, torch.zeros_like(hessian), 0.01), torch.where(remaining, weight, 0)
    )


def test_a_matrix_that_is_no_second_moment_is_one_line() -> None:
    _, weight, remaining, hessian = make_case(3)
    with pytest.raises(ModelError, match=r"has no unique solution at the damping 0\.01"):
        solve_rows(weight, remaining, -hessian + 2 * hessian.diagonal().mean() * torch.eye(12) / 3, 0.01)
