"""Sizes of the weight files of an export, computed before the export by the same rules."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from transformers.core_model_loading import revert_weight_conversion

from compressor.contracts import QuantizedMatrix
from compressor.export.compressed_tensors import PackedModule, pack_weight
from compressor.export.folder import choose_stored, holds_exactly
from compressor.export.packable_modules import (
    count_covered,
    find_fault,
    find_flat,
    list_matrices,
    merges_weights,
)
from compressor.export_formats import DENSE, is_installed
from compressor.models import Model
from compressor.models.weight_views import WeightView

NEVER = "the export saves every weight dense"
FRAME = len('{"__metadata__":{"format":"pt"},}') + 8 + 7
"""Bytes of a weight file without weights: the header, its length, and at most seven bytes of padding."""
SHORT = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Names of the usual dtypes in a header."""
UNUSUAL = "F8_E4M3"
"""As long as the longest name of another dtype."""
ENTRY = 200
"""About the bytes of a tensor's entry in a header."""
SHARD = 10**9
"""A lower bound of the bytes in each of several weight files; transformers makes files of fifty times this size."""


@dataclass(frozen=True)
class FileSizes:
    """The size of the weight files of `model` in the format `form`: a sum over components, and a rest.

    It is never less than the real size, and more only by a few bytes of each header entry that are not known before.
    Components that are parts of one matrix are assumed to have the same treatment.
    """

    model: Model
    form: str

    @cached_property
    def packs(self) -> bool:
        """Whether any component can be packed. If not, no treatment makes the files smaller."""
        return any(obstacle is None for _, obstacle in self._matrices.values())

    @cached_property
    def rest(self) -> int:
        """Bytes of everything that belongs to no component, including the frames of headers."""
        inside = {id(weight_views[0].parameter) for weight_views, _ in self._matrices.values()}
        parameters = dict(self.model.network.named_parameters(remove_duplicate=False))
        total = FRAME * (1 + self._largest // SHARD)
        for name, tensor in self.model.network.state_dict().items():
            owner = id(parameters[name]) if name in parameters else id(tensor)
            if owner in inside or self._names.get(owner, name) != name:
                continue
            dtype = choose_stored(self.model, tensor) if tensor.is_floating_point() else tensor.dtype
            total += tensor.numel() * dtype.itemsize + self._count_entry(name, tensor.shape, dtype)
        return total

    def count_bits(
        self, name: str, weight: Tensor, bits: int | None = None, quantized: QuantizedMatrix | None = None
    ) -> int:
        """Bits of a component in the files, including its share of headers.

        `weight` `[out, in]` is the scored weight; `bits` are those of its compressor, None if it is not treated;
        `quantized` are its integers and scales, if it consists of these.
        """
        weight_views, obstacle = self._matrices[name]
        component = self.model.components[name]
        if obstacle is None and bits is not None and bits < component.parameters * component.stored_bits:
            packed = self._count_packed(weight_views, weight, quantized)
            if packed is not None:
                return packed
        parameter, dtype = weight_views[0].parameter, choose_stored(self.model, weight)
        entry = self._count_entry(self._find_path(weight_views), parameter.shape, dtype)
        whole = 8 * (parameter.numel() * dtype.itemsize + entry)
        return math.ceil(whole * component.parameters / count_covered(weight_views))

    def _count_packed(
        self, weight_views: Sequence[WeightView], weight: Tensor, matrix: QuantizedMatrix | None
    ) -> int | None:
        """`count_bits` for a weight that is packed; None for a weight that stays dense."""
        if matrix is None or find_fault(matrix, len(weight_views)) is not None:
            return None
        if matrix.input_rounding is not None and id(weight_views[0].owner) in self._flat:
            return None
        stored, dtypes = self.model.stored_dtype, [self.model.dtype]
        # The dtype in which the saved model is loaded is one of these two; it depends on all components.
        dtypes += [stored] if stored.itemsize < dtypes[0].itemsize and holds_exactly(stored, weight) else []
        found = [pack_weight(matrix.to("cpu"), weight, dtype) for dtype in dtypes]
        packed = found[0]
        if isinstance(packed, str) or not all(isinstance(one, PackedModule) for one in found):
            return None
        stem, out = self._find_path(weight_views).removesuffix("weight"), len(weight_views[0].parameter)
        entries = 0
        for suffix, tensor in packed.tensors.items():
            shape = [out, *tensor.shape[1:]] if tensor.ndim > 1 else tensor.shape
            entries += self._count_entry(stem + suffix, shape, tensor.dtype)
        return 8 * (sum(tensor.nbytes for tensor in packed.tensors.values()) + math.ceil(entries / len(weight_views)))

    def _count_entry(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> int:
        """An upper bound of the bytes of a tensor's entry in a header."""
        digits = len(str(self._largest))
        entry = {name: {"dtype": SHORT.get(dtype, UNUSUAL), "shape": [*shape], "data_offsets": []}}
        text = json.dumps(entry, separators=(",", ":"), ensure_ascii=False)
        # A comma replaces the outer brackets of the entry, and there is a comma between the offsets.
        return len(text.encode()) - 1 + 2 * digits + 1 + self._growth

    @cached_property
    def _matrices(self) -> dict[str, tuple[list[WeightView], str | None]]:
        """Component -> all components of its parameter, and why that cannot be packed (None if it can)."""
        never = NEVER if self.form == DENSE or not is_installed() else None
        groups = [(weight_views, never or obstacle) for weight_views, obstacle in list_matrices(self.model)]
        return {weight_view.component.name: group for group in groups for weight_view in group[0]}

    @cached_property
    def _flat(self) -> set[int]:
        return find_flat(self.model)

    def _find_path(self, weight_views: Sequence[WeightView]) -> str:
        """The name of the parameter that contains these components."""
        return self._names[id(weight_views[0].parameter)]

    @cached_property
    def _names(self) -> dict[int, str]:
        """The longest name of each parameter, by its id."""
        named = self.model.network.named_parameters(remove_duplicate=False)
        return {id(parameter): name for name, parameter in sorted(named, key=lambda pair: len(pair[0]))}

    @cached_property
    def _growth(self) -> int:
        """How much longer a name in the files may be than in the network."""
        if merges_weights(self.model.network):
            return 0
        network, growth = self.model.network, 0
        for name, tensor in network.state_dict().items():
            (written,) = revert_weight_conversion(network, {name: tensor})
            growth = max(growth, len(written) - len(name))
        return growth

    @cached_property
    def _largest(self) -> int:
        """An upper bound of the bytes of the files."""
        width = max(self.model.stored_dtype.itemsize, self.model.dtype.itemsize)
        state = self.model.network.state_dict().values()
        return sum(ENTRY + tensor.numel() * max(width, tensor.itemsize) for tensor in state)
