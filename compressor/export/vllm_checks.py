"""What vLLM asks of a compressed-tensors checkpoint beyond what transformers does; vLLM itself is not needed.

Source: vllm/model_executor/layers/quantization/, there compressed_tensors/utils.py, which wants one scheme for modules
that are joined, compressed_tensors.py, which lists what goes with inputs of integers, and utils/marlin_utils.py, which
lists the sizes of groups.
"""

from collections.abc import Mapping

from compressor.contracts import Scheme, Strategy
from compressor.export.packable_modules import list_linears
from compressor.models import Model
from compressor.models.architectures import name_kind

JOINED = {"query": "q/k/v", "key": "q/k/v", "value": "q/k/v", "gate": "gate/up", "up": "gate/up"}
"""Kinds of sister modules that vLLM runs as one matrix product."""
WIDTHS = (4, 8)
GROUPS = (32, 64, 128)
"""Bits, and weights that share a scale, of vLLM's kernels for integer weights (Marlin); a scale per row is fine too."""


def find_split(model: Model, schemes: Mapping[str, Scheme]) -> list[str]:
    """The first module of each q/k/v and gate/up that vLLM would join and whose schemes differ.

    `schemes` are those of packed modules; a dense one among packed ones differs as well.
    """
    sisters: dict[tuple[str, str], list[str]] = {}
    for path in list_linears(model.network):
        above, _, leaf = path.rpartition(".")
        kind = name_kind(leaf, model.network.get_submodule(above))
        if kind in JOINED:
            sisters.setdefault((above, JOINED[kind]), []).append(path)
    return [paths[0] for paths in sisters.values() if len({schemes.get(path) for path in paths}) > 1]


def find_unserved(schemes: Mapping[str, Scheme]) -> list[str]:
    """Modules for whose scheme vLLM's kernels are not made."""
    return [path for path, scheme in schemes.items() if not is_served(scheme)]


def find_head(model: Model) -> str | None:
    """The path of the LM head; None where the family has none."""
    head = model.network.get_output_embeddings()
    return next((path for path, module in model.network.named_modules() if module is head), None)


def is_served(scheme: Scheme) -> bool:
    """Is there a kernel for such weights, alone or with inputs of integers?"""
    if scheme.input_rounding is not None:
        return scheme.bits == scheme.input_rounding.bits == 8 and scheme.strategy is not Strategy.group
    if scheme.strategy is Strategy.group and scheme.group not in GROUPS:
        return False
    return scheme.bits in WIDTHS and scheme.strategy is not Strategy.tensor


def tell_vllm(model: Model, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
    """What a person should know who wants to serve the model by vLLM; transformers loads it in any case."""
    notes = []
    if split := find_split(model, schemes):
        notes.append(
            "vLLM will refuse the saved model, transformers loads it: it joins q, k and v, and gate and up, which must "
            f"have one treatment each, and {len(split)} differ, `{split[0]}` first; components.fuse=true is for that."
        )
    if unserved := find_unserved(schemes):
        notes.append(
            f"vLLM may have no kernel for {len(unserved)} packed modules, `{unserved[0]}` first: it has them for 4 and "
            "8 bits with a scale for each row, or for each 32, 64 or 128 weights of it, and, where inputs are integers "
            "too, for 8 bits with a scale for each row or matrix; transformers loads them."
        )
    if (head := find_head(model)) in schemes:
        notes.append(
            f"vLLM and other servers may refuse the saved model, transformers loads it: its LM head `{head}` is "
            f'packed; components.exclude=["{head}"] leaves it dense.'
        )
    return tuple(notes)
