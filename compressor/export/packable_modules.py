"""Finds the linear modules of a model that can be stored as integers, and why the others cannot."""

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.core_model_loading import WeightConverter

from compressor.contracts import QuantizedMatrix, Strategy
from compressor.models import Model
from compressor.models.weight_views import WeightView

NOT_LINEAR = "the format packs plain linear modules, but not Conv1D, embeddings or stacked experts"
SHARED = "another module shares the weight"
PARTS = "the parts of a fused matrix have different treatments; give them the same one"
ONE_SCALE = "the parts of a fused matrix have one scale each, but the format has one for all; choose a scale per row"
UNEVEN = "the group must divide the width, or be at least as large; choose another group"
NOT_INTEGERS = "the compressor does not store integers, scales and integer zero points only"
INPUTS = "the format does not support its input transform"
FLAT = "its inputs have no sequence dimension, so the reader of the format would round all tokens by one scale"

MERGED = "transformers merges experts while it loads them, but takes no dense ones in a model with packed modules"


def find_packable(
    model: Model, quantized: Mapping[str, QuantizedMatrix | None]
) -> tuple[dict[str, QuantizedMatrix], dict[str, str]]:
    """Module path -> its whole quantized weight, and other treated component -> the reason why it stays dense.

    `quantized` has the treated components; None for weights that are not integers, scales and zero points.
    """
    if merges_weights(model.network):
        return {}, dict.fromkeys(quantized, MERGED)
    paths = {id(module): path for path, module in model.network.named_modules()}
    matrices, reasons = dict[str, QuantizedMatrix](), dict[str, str]()
    flat = find_flat(model) if model.input_transforms else set()
    for weight_views, obstacle in list_matrices(model):
        names = [weight_view.component.name for weight_view in weight_views]
        treated = [name for name in names if name in quantized]
        if not treated:
            continue
        found = obstacle or join_parts(weight_views, quantized)
        if isinstance(found, QuantizedMatrix):
            found = find_untransformable(model, found, weight_views, flat) or found
        if isinstance(found, QuantizedMatrix):
            matrices[paths[id(weight_views[0].owner)]] = found
        else:
            reasons |= dict.fromkeys(treated, found)
    return matrices, reasons


def list_matrices(model: Model) -> Iterator[tuple[list[WeightView], str | None]]:
    """All components of each parameter, and why it cannot be packed, whatever their treatment; None if it can."""
    uses = Counter(id(parameter) for _, parameter in model.network.named_parameters(remove_duplicate=False))
    is_merged = merges_weights(model.network)
    groups: dict[int, list[WeightView]] = {}
    for weight_view in model.weight_views.values():
        groups.setdefault(id(weight_view.parameter), []).append(weight_view)
    for key, weight_views in groups.items():
        obstacle = None
        if is_merged:
            obstacle = MERGED
        elif type(weight_views[0].owner) is not nn.Linear:  # other modules may use their weight directly
            obstacle = NOT_LINEAR
        elif uses[key] > 1:
            obstacle = SHARED
        elif count_covered(weight_views) != weight_views[0].parameter.numel():
            obstacle = PARTS
        yield weight_views, obstacle


def find_untransformable(
    model: Model, matrix: QuantizedMatrix, weight_views: Sequence[WeightView], flat: Collection[int]
) -> str | None:
    """Why the input transform of these components prevents packing; None if it does not."""
    if matrix.input_rounding is not None and id(weight_views[0].owner) in flat:
        return FLAT
    found = [model.input_transforms.find(weight_view.component.name) for weight_view in weight_views]
    return None if all(one == matrix.input_rounding for one in found) else INPUTS


def find_fault(matrix: QuantizedMatrix, parts: int) -> str | None:
    """Why one of `parts` parts of a parameter cannot be packed if all have the same treatment; None if it can."""
    if matrix.scheme.strategy is Strategy.tensor and matrix.zeros is not None:
        return NOT_INTEGERS
    if not matrix.is_even:
        return UNEVEN
    return ONE_SCALE if parts > 1 and matrix.scheme.strategy is Strategy.tensor else None


def count_covered(weight_views: Sequence[WeightView]) -> int:
    """The number of weights of their parameter that the components contain together."""
    return sum(weight_view.component.parameters for weight_view in weight_views)


def join_parts(
    weight_views: Sequence[WeightView], quantized: Mapping[str, QuantizedMatrix | None]
) -> QuantizedMatrix | str:
    """The whole parameter that contains these components, or the reason why its parts cannot be joined."""
    found = [quantized.get(weight_view.component.name) for weight_view in weight_views]
    parts = [part for part in found if part is not None]
    faults = [fault for part in parts if (fault := find_fault(part, len(weight_views))) is not None]
    if faults or not parts:
        return faults[0] if faults else NOT_INTEGERS
    if len(parts) < len(weight_views) or len({(part.scheme, part.scales.dtype) for part in parts}) > 1:
        return PARTS
    if len(parts) == 1:
        return parts[0]
    shape = weight_views[0].parameter.shape

    def join(tensors: Sequence[Tensor]) -> Tensor:
        """Rows of the parts at their places in the parameter."""
        joined = tensors[0].new_empty(shape[0], tensors[0].shape[1])
        for weight_view, tensor in zip(weight_views, tensors, strict=True):
            view = weight_view.part(joined)
            view.copy_(tensor.reshape(view.shape))
        return joined

    zeros = [part.zeros for part in parts if part.zeros is not None]
    return dataclasses.replace(
        parts[0],
        integers=join([part.integers for part in parts]),
        scales=join([part.scales for part in parts]),
        zeros=join(zeros) if zeros else None,
    )


def find_flat(model: Model) -> set[int]:
    """Ids of the linear modules whose inputs are not `[sequence, position, in]`, found by a short forward pass."""
    flat: set[int] = set()

    def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs and inputs[0].dim() != 3:
            flat.add(id(module))

    linears = [module for module in model.network.modules() if isinstance(module, nn.Linear)]
    handles = [module.register_forward_pre_hook(note) for module in linears]
    try:
        model.logits(torch.zeros(1, 2, dtype=torch.long), 1)
    finally:
        for handle in handles:
            handle.remove()
    return flat


def merges_weights(network: PreTrainedModel) -> bool:
    """Whether transformers builds parameters of this family from several tensors of the checkpoint, as for experts."""
    return any(
        isinstance(conversion, WeightConverter) for conversion in getattr(network, "_weight_conversions", None) or ()
    )


def list_linears(network: nn.Module) -> list[str]:
    """Paths of all linear modules, the LM head among them."""
    return [path for path, module in network.named_modules() if isinstance(module, nn.Linear)]


def note_dense(reasons: Mapping[str, str], where: str = "saved") -> list[str]:
    """A note for each reason why components are dense although their treatment takes fewer bits."""
    notes = []
    for reason in dict.fromkeys(reasons.values()):
        names = [name for name, one in reasons.items() if one == reason]
        notes.append(f"{len(names)} treated components are {where} as dense weights, `{names[0]}` first: {reason}.")
    return notes
