"""Training of the whole compressed model by its gradients."""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count

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
STEP, STATE, END = "step", "state", "end"
"""What the first process says to the others: take a step, collect the state of the optimizer, or end."""


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

    def take_steps(self, first: int, log: TrainingLog) -> Generator[bool]:
        """Take the steps from `first` on; yields after each whether all losses so far are known to be finite.

        For the first of the processes, which `follow` it meanwhile.
        """
        with ExitStack() as stack:
            stack.callback(lambda: self.processes.tell(END))
            stack.enter_context(self.prepared())
            for step in range(first, self.training.steps):
                self.processes.tell(STEP)
                loss, rate = self.take_step(step)
                tokens = self.training.batch * self.tokens.shape[1]
                yield log.add(step, loss, tokens, rate * self.training.learning_rate)

    def list_state(self) -> dict[str, Tensor]:
        """The state of the optimizer, between two steps."""
        self.processes.tell(STATE)
        return self.optimizer.list_state()

    def follow(self, first: int) -> None:
        """Do in another process what the first one says, until that ends."""
        steps = count(first)
        with self.prepared():
            while (said := self.processes.tell(None)) != END:
                if said == STEP:
                    self.take_step(next(steps))
                else:
                    self.optimizer.list_state()

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Inside, gradients can be computed."""
        with ExitStack() as stack:
            stack.enter_context(self.optimizer.training())
            if self.training.checkpointing:
                stack.enter_context(checkpointed(find_layers(self.model.network)[1]))
            yield

    def take_step(self, step: int) -> tuple[Tensor, float]:
        """One update; returns its loss, and its learning rate as a share of the largest."""
        training = self.training
        loss = self.compute_gradients(choose_windows(self.tokens, training.batch, step, self.seed))
        rate = compute_rate(step, training.steps, training.warmup)
        self.optimizer.update(rate, step < training.steps - training.released)
        if step + 1 == training.steps:
            self.optimizer.zero_pruned()
        return loss, rate

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
        return self.processes.add_up(total)


def needs_base(training: Training) -> bool:
    """Whether the loss uses what the base says."""
    return training.loss is not Loss.language_modelling and training.mix > 0
