"""AdamW for parameters and scales of a model, with float32 copies of 16-bit ones, and masks of what stays zero."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from compressor.recovery.masks import Masks
from compressor.recovery.processes import Processes
from compressor.recovery.scales import TrainedScales

COPY = "weight"
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
    not on scales. Of several `processes`, each has the copies and the moments of the parameters that it owns.
    """

    parameters: Sequence[nn.Parameter]
    masks: Masks
    learning_rate: float
    weight_decay: float
    clip: float = math.inf
    scales: Sequence[TrainedScales] = ()
    processes: Processes = field(default_factory=Processes)
    owners: dict[nn.Parameter, int] = field(init=False, repr=False)
    """The process that updates a parameter, of all that an update changes."""
    pairs: dict[nn.Parameter, Tensor] = field(init=False, repr=False)
    """What is updated for each of `parameters` that is owned here: the parameter itself, or its copy."""
    updated: dict[int, Tensor] = field(init=False, repr=False)
    """All that is updated here, by its number in `parameters`, which those of `scales` follow."""

    def __post_init__(self) -> None:
        changed = list(dict.fromkeys([*self.parameters, *(scales.view.parameter for scales in self.scales)]))
        owners = self.processes.choose_owners([parameter.numel() for parameter in changed])
        self.owners = dict(zip(changed, owners, strict=True))
        self.pairs = {
            parameter: parameter if parameter.dtype is torch.float32 else parameter.detach().float()
            for parameter in self.parameters
            if self.is_owned(parameter)
        }
        self.updated = {
            number: self.pairs[parameter]
            for number, parameter in enumerate(self.parameters)
            if self.is_owned(parameter)
        } | {
            number: scales.logarithms
            for number, scales in enumerate(self.scales, len(self.parameters))
            if self.is_owned(scales.view.parameter)
        }
        matrices = [tensor for tensor in self.pairs.values() if tensor.ndim > 1]
        others = [tensor for tensor in self.pairs.values() if tensor.ndim <= 1]
        others += [tensor for number, tensor in self.updated.items() if number >= len(self.parameters)]
        groups = [
            {"params": tensors, "weight_decay": decay}
            for tensors, decay in ((matrices, self.weight_decay), (others, 0.0))
            if tensors
        ]
        self.adam = torch.optim.AdamW(groups, lr=self.learning_rate, fused=True) if groups else None

    def is_owned(self, parameter: nn.Parameter) -> bool:
        """Whether this process updates the parameter."""
        return self.owners[parameter] == self.processes.rank

    @property
    def changed(self) -> list[nn.Parameter]:
        """All parameters that an update changes, each once: `parameters`, and those of quantized components."""
        return list(self.owners)

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
        """One update with `rate` times the learning rate, from the sums of the gradients of all processes.

        The gradients are used up.
        """
        self.processes.reduce_gradients(self.owners)
        if holds_masks:
            self.masks.zero_in({p: p.grad for p in self.pairs if p.grad is not None})
        for parameter, tensor in self.pairs.items():
            if tensor is not parameter:
                tensor.grad = None if parameter.grad is None else parameter.grad.float()
                parameter.grad = None
        for scales in self.scales:
            scales.logarithms.grad = scales.compute_gradient()
        self.clip_gradients()
        if self.adam is not None:
            for group in self.adam.param_groups:
                group["lr"] = rate * self.learning_rate
            self.adam.step()
            self.adam.zero_grad(set_to_none=True)
        for parameter in self.changed:
            parameter.grad = None
        if holds_masks:  # weight decay and momentum of steps before do not stop at a mask
            self.masks.zero_in(self.pairs)
        self.round()

    def clip_gradients(self) -> None:
        """Scale all gradients so that their norm, over all processes, is at most `clip`."""
        updated = list(self.updated.values())
        norm = nn.utils.get_total_norm([tensor.grad for tensor in updated if tensor.grad is not None])
        if self.processes.count > 1:
            norm = self.processes.add_up(norm.square()).sqrt()
        nn.utils.clip_grads_with_norm_(updated, self.clip, norm)

    def zero_pruned(self) -> None:
        """Set all pruned weights to zero."""
        self.masks.zero_in(self.pairs)
        self.round()

    @torch.no_grad()
    def round(self) -> None:
        """Round the float32 copies into the parameters, and write the weights with the new scales."""
        for parameter, tensor in self.pairs.items():
            if tensor is not parameter:
                parameter.copy_(tensor)
        self.processes.copy_from({parameter: self.owners[parameter] for parameter in self.parameters})
        self.processes.copy_from({scales.logarithms: self.owners[scales.view.parameter] for scales in self.scales})
        for scales in self.scales:
            scales.write()

    def list_state(self) -> dict[str, Tensor]:
        """All that later updates depend on besides parameters and scales, by name, in the first process."""
        state = {}
        for number, tensor in self.updated.items():
            if number < len(self.parameters) and tensor is not self.parameters[number]:
                state[f"{COPY}.{number}"] = tensor
            if self.adam is not None and (known := self.adam.state.get(tensor)):
                state[f"{STEP}.{number}"] = known[STEP].reshape(1)
                state |= {f"{name}.{number}": known[name] for name in MOMENTS}
        return self.processes.collect(state)

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `list_state` gave the first process, with parameters and scales of that moment."""
        for name, found in self.processes.spread(state.items()):
            kind, _, number = name.rpartition(".")
            if (tensor := self.updated.get(int(number))) is None:
                continue
            if kind == COPY:
                tensor.copy_(found)
            elif self.adam is not None:
                self.adam.state[tensor][kind] = found.to(tensor).reshape(() if kind == STEP else found.shape)
