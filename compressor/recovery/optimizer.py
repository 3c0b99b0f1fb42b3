"""AdamW for parameters and scales of a model, with float32 copies of 16-bit ones, and masks of what stays zero."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.recovery.masks import Masks
from compressor.recovery.scales import TrainedScales

STEP, MOMENTS = "step", ("exp_avg", "exp_avg_sq")
"""What AdamW remembers of a tensor."""


def compute_rate(step: int, steps: int, warmup: float) -> float:
    """The learning rate of a step as a share of the largest: a line up to `warmup` · steps, then half a cosine to 0."""
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


@dataclass
class Optimizer:
    """AdamW over `parameters`, and over the `scales` of quantized components.

    A parameter in 16 bits has a copy in float32, which is updated and rounded. Weight decay acts on matrices only, and
    not on scales.
    """

    parameters: Sequence[nn.Parameter]
    masks: Masks
    learning_rate: float
    weight_decay: float
    clip: float = math.inf
    scales: Sequence[TrainedScales] = ()
    updated: list[Tensor] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.updated = [
            parameter if parameter.dtype is torch.float32 else parameter.detach().float()
            for parameter in self.parameters
        ]
        matrices = [tensor for tensor in self.updated if tensor.ndim > 1]
        others = [tensor for tensor in self.updated if tensor.ndim <= 1] + self.logarithms
        groups = [
            {"params": tensors, "weight_decay": decay}
            for tensors, decay in ((matrices, self.weight_decay), (others, 0.0))
            if tensors
        ]
        self.adam = torch.optim.AdamW(groups, lr=self.learning_rate, fused=True)

    @property
    def logarithms(self) -> list[Tensor]:
        return [scales.logarithms for scales in self.scales]

    @property
    def changed(self) -> list[nn.Parameter]:
        """All parameters that an update changes, each once: `parameters`, and those of quantized components."""
        quantized = {id(scales.view.parameter): scales.view.parameter for scales in self.scales}
        return [*self.parameters, *quantized.values()]

    @contextmanager
    def training(self) -> Iterator[None]:
        """Inside, all parameters that an update changes require gradients."""
        for parameter in self.changed:
            parameter.requires_grad_(True)
        try:
            yield
        finally:
            for parameter in self.changed:
                parameter.requires_grad_(False)
                parameter.grad = None

    @torch.no_grad()
    def update(self, rate: float, holds_masks: bool) -> None:
        """One update from the gradients, which are used up, with `rate` times the learning rate."""
        if holds_masks:
            self.masks.zero_in({p: p.grad for p in self.parameters if p.grad is not None})
        for parameter, tensor in zip(self.parameters, self.updated, strict=True):
            if tensor is not parameter:
                tensor.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        for scales in self.scales:
            scales.logarithms.grad = scales.compute_gradient()
        nn.utils.clip_grad_norm_([*self.updated, *self.logarithms], self.clip)
        for group in self.adam.param_groups:
            group["lr"] = rate * self.learning_rate
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)
        for scales in self.scales:
            scales.view.parameter.grad = None
        if holds_masks:  # weight decay and momentum of steps before do not stop at a mask
            self.masks.zero_in(dict(zip(self.parameters, self.updated, strict=True)))
        self.round()

    def zero_pruned(self) -> None:
        """Set all pruned weights to zero."""
        self.masks.zero_in(dict(zip(self.parameters, self.updated, strict=True)))
        self.round()

    @torch.no_grad()
    def round(self) -> None:
        """Round the float32 copies into the parameters, and write the weights with the new scales."""
        for parameter, tensor in zip(self.parameters, self.updated, strict=True):
            if tensor is not parameter:
                parameter.copy_(tensor)
        for scales in self.scales:
            scales.write()

    def list_state(self) -> dict[str, Tensor]:
        """All that later updates depend on besides parameters and scales, by name."""
        copies = zip(self.parameters, self.updated, strict=True)
        state = {f"weight.{index}": copy for index, (parameter, copy) in enumerate(copies) if copy is not parameter}
        for index, tensor in enumerate([*self.updated, *self.logarithms]):
            if known := self.adam.state.get(tensor):
                state[f"{STEP}.{index}"] = known[STEP].reshape(1)
                state |= {f"{name}.{index}": known[name] for name in MOMENTS}
        return state

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `list_state` gave, with the parameters and scales that the model had then."""
        for index, tensor in enumerate([*self.updated, *self.logarithms]):
            if f"weight.{index}" in state:
                tensor.copy_(state[f"weight.{index}"])
            if f"{STEP}.{index}" in state:
                moments = {name: state[f"{name}.{index}"].to(tensor) for name in MOMENTS}
                self.adam.state[tensor] = {STEP: state[f"{STEP}.{index}"].to(tensor).reshape(()), **moments}
