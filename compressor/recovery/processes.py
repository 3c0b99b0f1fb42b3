"""Several processes that train one model together, as `accelerate launch` or `torchrun` starts them.

The first process does the whole run. The others wait until it trains; then they get texts and weights, and compute the
gradients of their share of every batch. Each updates its share of the weights, which all of them get.
"""

import functools
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from compressor.errors import ConfigError

WAIT = timedelta(days=365)
"""How long the others wait for the first process, which may search for days before it trains."""
LAUNCH = "start them by `accelerate launch` or torchrun"


@dataclass(frozen=True)
class Processes:
    """The process `rank` of `count`, on its `device`. What follows is done in all of them at the same time."""

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

    def choose_owners(self, sizes: Sequence[int]) -> list[int]:
        """The process that owns each of so many things of these sizes: all own about as much."""
        owned, owners = [0] * self.count, [0] * len(sizes)
        for index in sorted(range(len(sizes)), key=lambda index: -sizes[index]):
            owners[index] = owned.index(min(owned))
            owned[owners[index]] += sizes[index]
        return owners

    def add_up(self, value: Tensor) -> Tensor:
        """The sum of a number over the processes."""
        if self.count == 1:
            return value
        total = value.to(self.device, copy=True)
        torch.distributed.all_reduce(total)
        return total.to(value.device)

    def reduce_gradients(self, owners: Mapping[nn.Parameter, int]) -> None:
        """Replace each gradient by its sum over the processes in the one that owns the parameter; the others drop it.

        A parameter without a gradient in every process keeps none.
        """
        if self.count == 1:
            return
        has = torch.tensor([float(each.grad is not None) for each in owners], device=self.device)
        torch.distributed.all_reduce(has)
        for (parameter, owner), processes in zip(owners.items(), has.tolist(), strict=True):
            if not processes:
                continue
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            torch.distributed.reduce(gradient, owner)
            parameter.grad = gradient if owner == self.rank else None

    def copy_from(self, owners: Mapping[Tensor, int]) -> None:
        """Copy each tensor from the process that owns it to all others."""
        if self.count == 1:
            return
        for tensor, owner in owners.items():
            whole = tensor.detach().contiguous()
            torch.distributed.broadcast(whole, owner)
            if whole.data_ptr() != tensor.data_ptr():
                tensor.copy_(whole)

    def spread(self, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Tensors of the first process by name, in all of them: one after the other, so that only one has a copy."""
        for name, tensor in tensors if self.is_first else ():
            self.tell((name, tensor.shape, tensor.dtype))
            yield name, self._send(tensor, 0, tensor.shape, tensor.dtype)
        while (said := self.tell(None)) is not None:  # the first process has said all
            name, shape, dtype = said
            yield name, self._send(None, 0, shape, dtype)

    def collect(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The tensors of all processes on the host, in the first of them; the others get nothing."""
        if self.count == 1:
            return tensors
        found = {name: tensor.cpu() for name, tensor in tensors.items()} if self.is_first else {}
        lists: list[Any] = [None] * self.count
        torch.distributed.all_gather_object(lists, [(name, each.shape, each.dtype) for name, each in tensors.items()])
        for rank, theirs in enumerate(lists):
            for name, shape, dtype in theirs if rank else ():
                sent = self._send(tensors.get(name), rank, shape, dtype)
                if self.is_first:
                    found[name] = sent.cpu()
        return found

    def _send(self, tensor: Tensor | None, owner: int, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """A tensor of the process that owns it, in all of them."""
        if self.count == 1:
            assert tensor is not None, "the only process owns it"
            return tensor
        if owner == self.rank:
            assert tensor is not None, "it is owned here"
            tensor = tensor.to(self.device).contiguous()
        else:
            tensor = torch.empty(shape, dtype=dtype, device=self.device)
        torch.distributed.broadcast(tensor, owner)
        return tensor


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
    try:
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=WAIT)
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"WORLD_SIZE is {count}, and the processes do not find each other ({reason}); {LAUNCH}"
        ) from error
    if state.num_processes != count:
        raise ConfigError(f"WORLD_SIZE is {count}, and accelerate finds {state.num_processes} processes; {LAUNCH}")
    if state.process_index:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # nothing is lost with such a process
            signal.signal(signum, signal.SIG_DFL)
    return Processes(state.process_index, state.num_processes, state.device)
