"""Costs that others rank by, in place of estimates: gradient magnitude, and the trace of the Hessian."""

import enum

import numpy as np
import torch
from torch import Tensor

from compressor.commands.run import Run
from compressor.contracts import Estimate, EstimateRequest, Prefixes, Readout
from compressor.models.gradients import LayerwiseGradients
from compressor.sensitivity.estimator import Changes


class Heuristic(enum.Enum):
    """How the change Δ of a component's weights W is charged.

    gradient: Σ |∂L/∂W| |Δ|, the first-order Taylor term without signs, L the cross-entropy of the base's own tokens.
    trace: tr(H) ‖Δ‖² / (2 numbers of W), H the Fisher information of W, as HAWQ-V2 (arXiv 1911.03852) takes the
    Hessian.
    """

    gradient = "gradient"
    trace = "trace"


def gather_gradients(run: Run, heuristic: Heuristic) -> dict[str, Tensor]:
    """By component, a mean over search prefixes: |∂L/∂W| `[out, in]`, or tr(H)."""
    reference, objective = run.setup.evaluators[Prefixes.SEARCH].reference, run.setup.metrics["kl"]
    walk, found = LayerwiseGradients(run.setup.model, list(run.setup.model.components)), dict[str, Tensor]()
    draw = torch.Generator().manual_seed(0)

    def visit(name: str, rows: slice, gradients: Tensor) -> None:
        value = gradients.abs().sum(0) if heuristic is Heuristic.gradient else gradients.square().sum()
        found[name] = found.get(name, torch.zeros(())) + value

    for start, batch in reference.batches():
        base = reference.base_readout(start, len(batch))

        def scalar(logits: Tensor, base: Readout = base) -> Tensor:
            candidate = Readout(logits, base.tokens)
            if heuristic is Heuristic.gradient:
                return candidate.reference_log_probability.mean(-1)
            probed: Tensor = objective.probe(candidate, base, draw)  # type: ignore[attr-defined]
            return probed

        walk.run_backward(batch[:, :-1], reference.continuation_tokens, scalar, visit)
    return {name: value / len(reference.tokens) for name, value in found.items()}


def charge_options(run: Run, request: EstimateRequest, heuristic: Heuristic) -> dict[str, Estimate]:
    """The answer to an estimate request by a heuristic, for models that take sequences together."""
    gathered = gather_gradients(run, heuristic)
    changes = Changes(run.setup.model, run.session.treatments, request.options, {})
    answer = {}
    for name in request.options:
        moved = changes.of(name)
        if heuristic is Heuristic.gradient:
            costs = (moved.abs() * gathered[name]).sum((1, 2))
        else:
            costs = gathered[name] * moved.square().mean((1, 2))
        answer[name] = Estimate(costs.double().numpy()[None] * np.ones((1, 1)))
    return answer
