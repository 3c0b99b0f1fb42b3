"""Several processes that train one model together, as `accelerate launch` or `torchrun` starts them.

The first process does the whole run. The others wait until it trains; then they get texts and weights, and compute the
gradients of their share of every batch. All of them take the same updates.
"""

import functools
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ConfigError

WAIT = timedelta(days=365)
"""How long the others wait for the first process, which may search for days before it trains."""


@dataclass(frozen=True)
class Processes:
    """The process `rank` of `count`, on its `device`."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def tell(self, message: object) -> Any:  # noqa: ANN401 - whatever the first process says
        """What the first process says, in all of them."""
        if self.count == 1:
            return message
        said = [message]
        torch.distributed.broadcast_object_list(said, device=self.device)
        return said[0]

    def share(self, windows: Tensor) -> Tensor:
        """The windows of a batch that are this process's."""
        return windows.tensor_split(self.count)[self.rank]

    def add_up(self, parameters: Sequence[nn.Parameter], loss: Tensor) -> Tensor:
        """Replace all gradients by their sums over the processes; returns the sum of the losses.

        A parameter without a gradient in every process keeps none.
        """
        if self.count == 1:
            return loss
        has = torch.tensor([float(each.grad is not None) for each in parameters], device=self.device)
        torch.distributed.all_reduce(has)
        for parameter, processes in zip(parameters, has.tolist(), strict=True):
            if processes:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                torch.distributed.all_reduce(parameter.grad)
        total = loss.to(self.device)
        torch.distributed.all_reduce(total)
        return total.to(loss.device)


@functools.cache
def join_processes() -> Processes:
    """This process among those that were started together; raises ConfigError without the package for that."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count < 2:
        return Processes()
    try:
        from accelerate import PartialState
    except ImportError:
        raise ConfigError(
            f"WORLD_SIZE is {count}, and several processes need accelerate; pip install 'compressor[train]', or start "
            "one process"
        ) from None
    state = PartialState(timeout=WAIT)
    if state.process_index:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # nothing is lost with such a process
            signal.signal(signum, signal.SIG_DFL)
    return Processes(state.process_index, state.num_processes, state.device)
