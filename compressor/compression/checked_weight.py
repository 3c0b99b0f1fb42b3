"""Compressed weights of plugins: whatever they give is checked whenever it is read, and errors name the compressor."""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from compressor.contracts import Component, CompressedWeight, Compressor, QuantizedMatrix, TokenRounding
from compressor.contracts.guard import Guard, name_plugin, show
from compressor.errors import PluginError
from compressor.models.input_transforms import OwnedTransform

MOST_BITS = 8
"""The most bits that a compressed weight may take, relative to those of the weight: more is a mistake."""


@dataclass(frozen=True)
class WeightForm:
    """What every dense value of a compressed weight has: the form of the weight `[out, in]` that was given."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, weight: Tensor) -> "WeightForm":
        return cls(weight.shape, weight.dtype, weight.device)


@dataclass(frozen=True, eq=False)
class CheckedWeight:
    """A compressed weight of a plugin, of which all but `dense` is read once; keeping that would take much memory."""

    given: CompressedWeight
    compressor: Compressor
    component: str
    form: WeightForm
    bits: int
    quantized: QuantizedMatrix | None
    input_transform: OwnedTransform | TokenRounding | None

    def dense(self) -> Tensor:
        return read_dense(self.given, self.compressor, self.component, self.form)


def check_compressed(compressor: Compressor, component: Component, compressed: object, weight: Tensor) -> CheckedWeight:
    """The compressed weight, checked; raises PluginError for one that cannot stand in for `weight` `[out, in]`."""
    name, form = component.name, WeightForm.of(weight)
    if not isinstance(compressed, CompressedWeight):
        found = "None" if compressed is None else f"a value of type {type(compressed).__name__}"
        raise PluginError(
            f"{name_plugin(compressor)} gave {found} as the compressed weight of {name}; give a CompressedWeight, such "
            "as a QuantizedMatrix"
        )
    read_dense(compressed, compressor, name, form)
    most = MOST_BITS * max(component.stored_bits, 8 * weight.itemsize) * component.parameters
    bits = read_bits(compressed, compressor, name, most)
    transform = read_transform(compressed, compressor, name)
    quantized = read_quantized(compressed, compressor, name, weight)
    return CheckedWeight(compressed, compressor, name, form, bits, quantized, transform)


def read_dense(compressed: CompressedWeight, compressor: Compressor, component: str, form: WeightForm) -> Tensor:
    """The dense value; raises PluginError unless it is finite and has this form."""
    with Guard(compressor, "dense", component):
        dense: object = compressed.dense()
    flaw = ""
    if not isinstance(dense, Tensor):
        flaw = f"is {type(dense).__name__} for {component}, the weight is {tuple(form.shape)} {form.dtype}"
    elif dense.shape != form.shape or dense.dtype != form.dtype:
        flaw = f"is {tuple(dense.shape)} {dense.dtype} for {component}, the weight is {tuple(form.shape)} {form.dtype}"
    elif dense.layout is not torch.strided or dense.device != form.device:
        flaw = f"is {dense.layout} on {dense.device} for {component}; the weight is {torch.strided} on {form.device}"
    elif not is_finite(dense):
        flaw = f"holds NaN or infinity for {component}; mend it"
    else:
        return dense
    raise PluginError(f"{name_plugin(compressor)} gave a dense value that {flaw}")


def read_bits(compressed: CompressedWeight, compressor: Compressor, component: str, most: int) -> int:
    """The packed bits; raises PluginError unless they are in [0, most]."""
    with Guard(compressor, "bits", component):
        bits: object = compressed.bits
    if isinstance(bits, bool) or not isinstance(bits, int) or not 0 <= bits <= most:
        owner = name_plugin(compressor)
        raise PluginError(f"{owner} gave {show(bits)} as the `bits` of {component}; give a whole number in [0, {most}]")
    return bits


def read_transform(
    compressed: CompressedWeight, compressor: Compressor, component: str
) -> OwnedTransform | TokenRounding | None:
    """The input transform, with its owner; raises PluginError for one that the compressor must not have."""
    with Guard(compressor, "input_transform", component):
        transform: object = compressed.input_transform
    if transform is None:
        return None
    owner = name_plugin(compressor)
    if not callable(transform):
        raise PluginError(
            f"{owner} gave {show(transform)} as `input_transform` of {component}; give a function or None"
        )
    if compressor.transforms_inputs is not True:
        raise PluginError(
            f"{owner} gave a weight with an `input_transform` for {component}, so `transforms_inputs` must be True"
        )
    # An export compares a rounding with that of the packed weight; it is our own code, which has no owner.
    if isinstance(transform, TokenRounding) and transform.__class__ is TokenRounding:
        return transform
    return OwnedTransform(transform, compressor)


def read_quantized(
    compressed: CompressedWeight, compressor: Compressor, component: str, weight: Tensor
) -> QuantizedMatrix | None:
    """The weight as integers and scales; raises PluginError for another form."""
    with Guard(compressor, "quantized", component):
        matrix: object = compressed.quantized
    if matrix is None:
        return None
    owner = name_plugin(compressor)
    if not isinstance(matrix, QuantizedMatrix):
        raise PluginError(
            f"{owner} gave {type(matrix).__name__} as `quantized` of {component}; give a QuantizedMatrix or None"
        )
    with Guard(compressor, "quantized", component):  # a class of the plugin may compute its fields
        read = [getattr(matrix, field.name) for field in fields(QuantizedMatrix)]
    plain = QuantizedMatrix(*read)
    if flaw := find_flaw(plain, weight):
        raise PluginError(f"{owner} gave a `quantized` of {component} whose {flaw}")
    return plain


def find_flaw(matrix: QuantizedMatrix, weight: Tensor) -> str | None:
    """What is wrong with the form of a quantized matrix, and the rule; its numbers are compared by an export."""
    bits, group, scales = matrix.integer_bits, matrix.group, matrix.scales
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 8:
        return f"`integer_bits` is {show(bits)}; integers have 1 to 8 bits"
    if isinstance(group, bool) or not isinstance(group, int) or group < 0:
        return f"`group` is {show(group)}; give a number of weights, or 0 for a whole row"
    if not isinstance(matrix.integers, Tensor) or matrix.integers.shape != weight.shape:
        return f"`integers` are {describe_form(matrix.integers)}; a tensor {tuple(weight.shape)} is needed"
    if matrix.integers.dtype != torch.int8:
        return f"`integers` are {matrix.integers.dtype}; give int8"
    widths = {rows: weight.numel() // rows for rows in (len(weight), 1)}  # a scale for each row, or for the matrix
    forms = {(rows, -(-width // (min(group, width) or width))) for rows, width in widths.items()}
    if not isinstance(scales, Tensor) or tuple(scales.shape) not in forms or not scales.is_floating_point():
        return f"`scales` are {describe_form(scales)}; floats {' or '.join(map(str, sorted(forms)))} are needed"
    if matrix.zeros is not None and (not isinstance(matrix.zeros, Tensor) or matrix.zeros.shape != scales.shape):
        return f"`zeros` are {describe_form(matrix.zeros)}; a tensor {tuple(scales.shape)} or None is needed"
    if matrix.input_rounding is not None and not isinstance(matrix.input_rounding, TokenRounding):
        return f"`input_rounding` is {show(matrix.input_rounding)}; give a TokenRounding or None"
    return None


def describe_form(value: object) -> str:
    """The shape and dtype of a tensor, or the type of anything else."""
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def is_finite(tensor: Tensor) -> bool:
    """Whether no element is NaN or infinite. A finite sum proves it, and is much faster to compute."""
    return bool(tensor.sum(dtype=torch.float32).isfinite()) or bool(tensor.isfinite().all())
