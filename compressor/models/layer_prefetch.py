"""The decoder layers of a streamed model come to the device when they run, two at a time; the rest stays there.

A layer arrives when one of its modules is called, also where a backward pass computes the layer again, and stays until
another one arrives, when its own backward pass is over. Meanwhile the next in the direction of travel is on its way.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compressor.models.architectures import see_bits

ROOM = 2
"""Layers on the device at once, one that is on its way counted."""


@dataclass(frozen=True)
class _Visit:
    """Copies of a layer's parameters on the device, and how often each parameter had been written to before."""

    copies: Sequence[Tensor]
    versions: Sequence[int]
    arrived: torch.cuda.Event | None = None


class LayerPrefetch:
    """Moves `network` to `device`, but for what only one of `layers` uses: that visits.

    `release` gets every tensor at home that was written to. What is written to a parameter counts wherever it is.
    """

    def __init__(
        self, network: nn.Module, layers: nn.ModuleList, device: torch.device, release: Callable[[Tensor], None]
    ) -> None:
        self.device, self._release = device, release
        self._parameters = find_streamed(network, layers)
        self._homes = [[parameter.data for parameter in parameters] for parameters in self._parameters]
        self._visits: dict[int, _Visit] = {}
        self._coming: tuple[int, Future[_Visit]] | None = None
        self._last: int | None = None
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._carrier = ThreadPoolExecutor(1, "residency")
        streamed = {id(parameter) for parameters in self._parameters for parameter in parameters}
        for tensor in (*network.parameters(), *network.buffers()):
            if id(tensor) not in streamed:
                tensor.data = tensor.data.to(device)
        for index, layer in enumerate(layers):
            for module in layer.modules():
                # Not the layer itself: where others compute in its place, it has nothing to do here.
                if module is not layer or any(True for _ in layer.parameters(recurse=False)):
                    module.register_forward_pre_hook(partial(self._arrive, index))

    def _arrive(self, index: int, module: nn.Module, inputs: object) -> None:
        self.bring(index)

    def bring(self, index: int) -> None:
        """Have the layer on the device, and send for the one that comes next in the direction of travel."""
        if index != self._last:
            self._bring(index)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _bring(self, index: int) -> None:
        step = -1 if self._last is not None and index == self._last - 1 else 1
        if index not in self._visits:
            visit = self._await(index)
            self._make_room()
            self._welcome(index, visit or self._fetch(index, self._read_versions(index)))
        self._visits[index] = self._visits.pop(index)  # the latest is the last
        self._last, following = index, index + step
        if 0 <= following < len(self._homes) and following not in self._visits:
            self._make_room()
            versions = self._read_versions(following)
            self._coming = following, self._carrier.submit(self._fetch, following, versions)

    def _await(self, index: int) -> _Visit | None:
        """The visit that is on its way, if it is that of the layer; another is called off."""
        if self._coming is None:
            return None
        (coming, future), self._coming = self._coming, None
        visit = future.result()
        return visit if coming == index else None

    def _make_room(self) -> None:
        while len(self._visits) >= ROOM:
            self._send_home(next(iter(self._visits)))

    @torch.no_grad()
    def _fetch(self, index: int, versions: Sequence[int]) -> _Visit:
        """Copy a layer; on a GPU beside what runs there, which must wait for `arrived`."""
        if self._side is None:
            return _Visit([home.to(self.device, copy=True) for home in self._homes[index]], versions)
        with torch.cuda.stream(self._side):
            copies = [home.pin_memory().to(self.device, non_blocking=True) for home in self._homes[index]]
            return _Visit(copies, versions, self._side.record_event())

    def _welcome(self, index: int, visit: _Visit) -> None:
        if visit.arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(visit.arrived)
            for copy in visit.copies:
                copy.record_stream(stream)
        places = zip(self._parameters[index], self._homes[index], visit.copies, visit.versions, strict=True)
        for parameter, home, copy, version in places:
            if parameter._version != version:  # written to while it was on its way
                copy.copy_(home)
            parameter.data = copy
        self._visits[index] = _Visit(visit.copies, self._read_versions(index))

    def _send_home(self, index: int) -> None:
        """Have the layer at home again, with what was written to it meanwhile."""
        visit = self._visits.pop(index)
        places = zip(self._parameters[index], self._homes[index], visit.copies, visit.versions, strict=True)
        for parameter, home, copy, version in places:
            parameter.data = home
            if parameter._version != version:
                returned = copy.to(home.device)
                if not torch.equal(see_bits(returned), see_bits(home)):  # a page that is written to takes memory
                    home.copy_(returned)
                self._release(home)

    def _read_versions(self, index: int) -> list[int]:
        return [parameter._version for parameter in self._parameters[index]]


class OnDevice(Mapping[str, Tensor]):
    """The `tensors`, each brought to `device` as it is asked for: all of them might be too many there."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def find_streamed(network: nn.Module, layers: nn.ModuleList) -> list[list[nn.Parameter]]:
    """By layer, the parameters that no other layer has, and nothing outside of the layers."""
    owners: Counter[int] = Counter()
    inside = {module for layer in layers for module in layer.modules()}
    for module in network.modules():
        if module not in inside:
            owners.update({id(parameter) for parameter in module.parameters(recurse=False)})
    for layer in layers:
        owners.update({id(parameter) for parameter in layer.parameters()})
    return [[parameter for parameter in layer.parameters() if owners[id(parameter)] == 1] for layer in layers]
