"""The losses against torch's own, in float64."""

import math

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from compressor.contracts import Loss, Training
from compressor.recovery.losses import compute_divergences, compute_loss, compute_weights

GENERATOR = torch.Generator().manual_seed(0)
OURS, BASE = (3 * torch.randn(2, 5, 11, generator=GENERATOR) for _ in range(2))
TOKENS = torch.randint(11, (2, 5), generator=GENERATOR)


def test_language_modelling_is_the_cross_entropy_of_the_next_token() -> None:
    found = compute_loss(Training(1, loss=Loss.language_modelling), OURS, TOKENS, None)
    wanted = cross_entropy(OURS[:, :-1].double().flatten(0, 1), TOKENS[:, 1:].flatten())
    assert float(found) == pytest.approx(float(wanted), rel=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_distillation_is_the_divergence_from_the_base(temperature: float) -> None:
    found = compute_divergences(OURS, BASE, temperature)
    ours, base = ((logits.double() / temperature).log_softmax(-1) for logits in (OURS, BASE))
    wanted = temperature**2 * kl_div(ours, base, log_target=True, reduction="none").sum(-1)
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_mix_is_a_weighted_mean_of_both() -> None:
    parts = [compute_loss(Training(1, mix=mix), OURS, TOKENS, BASE) for mix in (0.0, 1.0, 0.25)]
    assert float(parts[2]) == pytest.approx(0.75 * float(parts[0]) + 0.25 * float(parts[1]), rel=1e-6)


@pytest.mark.parametrize("loss", [Loss.distillation, Loss.margins])
def test_a_model_that_says_the_same_has_no_loss_and_no_gradient(loss: Loss) -> None:
    logits = BASE.clone().requires_grad_()
    found = compute_loss(Training(1, loss=loss), logits, TOKENS, BASE)
    found.backward()
    assert float(found.detach()) == pytest.approx(0, abs=1e-7)
    assert logits.grad is not None and float(logits.grad.abs().max()) < 1e-7


def test_positions_near_a_tie_weigh_most() -> None:
    logits = torch.tensor([[[2.0, 2.0, 0.0], [2.0, 1.0, 0.0], [0.0, 9.0, 0.0]]])
    weights = compute_weights(logits)
    ratios = torch.tensor([1.0, math.exp(-1), math.exp(-9)])
    torch.testing.assert_close(weights[0], ratios / ratios.mean())
