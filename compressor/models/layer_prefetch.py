"""Copies the decoder layers of a streamed model to the device when they run; the other parameters stay there.

A layer is copied when one of its modules is called, also when a backward pass computes the layer again. At most two
layers are on the device: the one that runs, and the next one, which is copied in the background. Next is the following
layer in a forward pass, and the one before in a backward pass.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from compressor.models.architectures import see_bits

ROOM = 2
"""The largest number of layers on the device, including one that is being copied."""


@dataclass(frozen=True)
class _DeviceCopy:
    """Copies of a layer's parameters on the device, and the version counter of each parameter when it was copied.

    `arrived` is the CUDA event after which the copies are complete.
    """

    tensors: Sequence[Tensor]
    versions: Sequence[int]
    arrived: torch.cuda.Event | None = None


class LayerPrefetch:
    """Moves `network` to `device`, except parameters that only one of `layers` uses: these are copied when needed.

    A parameter may be written to while it is on the device: it is copied back when its layer leaves the device, and
    `release` is called with the host tensor.
    """

    def __init__(
        self, network: nn.Module, layers: nn.ModuleList, device: torch.device, release: Callable[[Tensor], None]
    ) -> None:
        self.device, self._release = device, release
        self._parameters = find_streamed(network, layers)
        self._host_tensors = [[parameter.data for parameter in parameters] for parameters in self._parameters]
        self._on_device: dict[int, _DeviceCopy] = {}
        self._pending: tuple[int, Future[_DeviceCopy]] | None = None
        self._last: int | None = None
        self._copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._copy_thread = ThreadPoolExecutor(1, "layer-prefetch")
        streamed = {id(parameter) for parameters in self._parameters for parameter in parameters}
        for tensor in (*network.parameters(), *network.buffers()):
            if id(tensor) not in streamed:
                tensor.data = tensor.data.to(device)
        for index, layer in enumerate(layers):
            for module in layer.modules():
                # Not the layer itself: its forward may be patched, and then its weights are not needed.
                if module is not layer or any(True for _ in layer.parameters(recurse=False)):
                    module.register_forward_pre_hook(partial(self.bring, index))

    def bring(self, index: int, *hook_arguments: object) -> None:
        """Make sure that the layer is on the device, and start to copy the next one."""
        if index != self._last:
            self._bring(index)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _bring(self, index: int) -> None:
        step = -1 if self._last is not None and index == self._last - 1 else 1
        if index not in self._on_device:
            started = None
            if self._pending is not None:
                (pending, future), self._pending = self._pending, None
                copies = future.result()
                started = copies if pending == index else None  # the copy of another layer is dropped
            self._make_room()
            self._use_copy(index, started or self._copy_layer(index, self._read_versions(index)))
        self._on_device[index] = self._on_device.pop(index)  # the latest is the last
        self._last, following = index, index + step
        if 0 <= following < len(self._host_tensors) and following not in self._on_device:
            self._make_room()
            versions = self._read_versions(following)
            self._pending = following, self._copy_thread.submit(self._copy_layer, following, versions)

    def _make_room(self) -> None:
        while len(self._on_device) >= ROOM:
            self._remove_copy(next(iter(self._on_device)))

    @torch.no_grad()
    def _copy_layer(self, index: int, versions: Sequence[int]) -> _DeviceCopy:
        """Copy a layer to the device; on a GPU in a stream of its own, where `arrived` is the event after it."""
        tensors = self._host_tensors[index]
        if self._copy_stream is None:
            return _DeviceCopy([tensor.to(self.device, copy=True) for tensor in tensors], versions)
        with torch.cuda.stream(self._copy_stream):
            copies = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]
            return _DeviceCopy(copies, versions, self._copy_stream.record_event())

    def _use_copy(self, index: int, copies: _DeviceCopy) -> None:
        """Let the layer's parameters be the copies on the device."""
        if copies.arrived is not None:
            stream = torch.cuda.current_stream(self.device)
            stream.wait_event(copies.arrived)
            for tensor in copies.tensors:
                tensor.record_stream(stream)
        places = zip(self._parameters[index], self._host_tensors[index], copies.tensors, copies.versions, strict=True)
        for parameter, host_tensor, tensor, version in places:
            if parameter._version != version:  # written to while it was copied
                tensor.copy_(host_tensor)
            parameter.data = tensor
        self._on_device[index] = _DeviceCopy(copies.tensors, self._read_versions(index))

    def _remove_copy(self, index: int) -> None:
        """Let the layer's parameters be on the host again, with the values that were written to them meanwhile."""
        copies = self._on_device.pop(index)
        places = zip(self._parameters[index], self._host_tensors[index], copies.tensors, copies.versions, strict=True)
        for parameter, host_tensor, tensor, version in places:
            parameter.data = host_tensor
            if parameter._version != version:
                returned = tensor.to(host_tensor.device)
                # Only a page that changes is written: a mapped page that is written to takes memory.
                if not torch.equal(see_bits(returned), see_bits(host_tensor)):
                    host_tensor.copy_(returned)
                self._release(host_tensor)

    def _read_versions(self, index: int) -> list[int]:
        return [parameter._version for parameter in self._parameters[index]]


class OnDevice(Mapping[str, Tensor]):
    """The `tensors` as a mapping that copies each one to `device` when it is read, because all may not fit there."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors, self._device = tensors, device

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name].to(self._device)

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def find_streamed(network: nn.Module, layers: nn.ModuleList) -> list[list[nn.Parameter]]:
    """For each layer, the parameters that are used by no other layer and by nothing outside of the layers."""
    owners: Counter[int] = Counter()
    inside = {module for layer in layers for module in layer.modules()}
    for module in network.modules():
        if module not in inside:
            owners.update({id(parameter) for parameter in module.parameters(recurse=False)})
    for layer in layers:
        owners.update({id(parameter) for parameter in layer.parameters()})
    return [[parameter for parameter in layer.parameters() if owners[id(parameter)] == 1] for layer in layers]
