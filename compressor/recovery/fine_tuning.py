"""Training of the whole compressed model by its gradients."""

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch
from torch import Tensor

from compressor.contracts.recovery import Loss, Training
from compressor.models import Model
from compressor.models.components import find_layers
from compressor.models.forward import checkpointed
from compressor.recovery.losses import compute_loss
from compressor.recovery.optimizer import Optimizer, compute_rate
from compressor.recovery.processes import Processes
from compressor.recovery.training_log import TrainingLog

LOGITS = 1 << 26
"""The largest number of logits of one forward pass, 256 MB in float32. A constant, because sums depend on it."""


def choose_windows(tokens: Tensor, batch: int, step: int, seed: int) -> Tensor:
    """`[batch, position]`: the windows of a step, from `tokens` `[window, position]`.

    All windows are used once, in an order by `seed`, before they are used again in another order.
    """
    found: list[Tensor] = []
    position = step * batch
    while sum(map(len, found)) < batch:
        epoch, start = divmod(position, len(tokens))
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(len(tokens), generator=generator)
        chosen = order[start : start + batch - sum(map(len, found))]
        found.append(tokens[chosen])
        position += len(chosen)
    return torch.cat(found)


@dataclass
class FineTuning:
    """Training of `model` on `tokens` `[window, position]`; `base` is for distillation, else None.

    Each of the `processes` computes the gradients of its share of every batch.
    """

    model: Model
    base: Model | None
    tokens: Tensor
    training: Training
    optimizer: Optimizer
    seed: int
    processes: Processes = field(default_factory=Processes)

    def take_steps(self, first: int, log: TrainingLog) -> Iterator[bool]:
        """Take the steps from `first` on; yields after each whether all losses so far are known to be finite."""
        training, taken = self.training, first
        with ExitStack() as stack:
            stack.callback(lambda: self.processes.is_first and taken < training.steps and self.processes.tell(False))
            stack.enter_context(self.optimizer.training())
            if training.checkpointing:
                stack.enter_context(checkpointed(find_layers(self.model.network)[1]))
            for step in range(first, training.steps):
                if not self.processes.tell(True):
                    return
                batch = choose_windows(self.tokens, training.batch, step, self.seed)
                loss = self.compute_gradients(batch)
                rate = compute_rate(step, training.steps, training.warmup)
                self.optimizer.update(rate, step < training.steps - training.released)
                if step + 1 == training.steps:
                    self.optimizer.zero_pruned()
                taken = step + 1
                yield log.add(step, loss, batch.numel(), rate * training.learning_rate)

    def compute_gradients(self, batch: Tensor) -> Tensor:
        """Add up the gradients of the mean loss over windows `[window, position]`, in parts; returns that loss."""
        at_once = max(1, LOGITS // (batch.shape[1] * self.model.vocabulary))
        total = torch.zeros((), device=self.model.device)
        own = self.processes.share(batch)
        for part in own.split(at_once) if len(own) else ():
            with torch.enable_grad():
                logits = self.model.traced_logits(part, part.shape[1])
                base = None if self.base is None else self.base.logits(part, part.shape[1])
                loss = compute_loss(self.training, logits, part.to(logits.device), base) * (len(part) / len(batch))
                loss.backward()
            total += loss.detach()
        return self.processes.add_up(self.optimizer.changed, total)


def needs_base(training: Training) -> bool:
    """Whether the loss uses what the base says."""
    return training.loss is not Loss.language_modelling and training.mix > 0
