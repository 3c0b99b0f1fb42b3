"""Checks whether vLLM can load a compressed-tensors checkpoint; vLLM itself is not needed.

Source: vllm/model_executor/layers/quantization/. There compressed_tensors/utils.py requires one scheme for modules that
are fused, compressed_tensors.py lists the schemes with integer inputs, and utils/marlin_utils.py the group sizes.
"""

from collections.abc import Mapping

from compressor.contracts import Scheme, Strategy
from compressor.export.packable_modules import list_linears
from compressor.models import Model
from compressor.models.architectures import name_kind

JOINED = {"query": "q/k/v", "key": "q/k/v", "value": "q/k/v", "gate": "gate/up", "up": "gate/up"}
"""Kinds of modules that vLLM fuses into one matrix product with others of the same layer."""
WIDTHS = (4, 8)
GROUPS = (32, 64, 128)
"""Bits and group sizes of vLLM's kernels for integer weights (Marlin); they also support one scale per row."""


def find_split(model: Model, schemes: Mapping[str, Scheme]) -> list[str]:
    """The first module of each q/k/v and gate/up that vLLM would fuse and whose schemes differ.

    `schemes` are those of packed modules; a dense module beside packed ones differs too.
    """
    sisters: dict[tuple[str, str], list[str]] = {}
    for path in list_linears(model.network):
        above, _, leaf = path.rpartition(".")
        kind = name_kind(leaf, model.network.get_submodule(above))
        if kind in JOINED:
            sisters.setdefault((above, JOINED[kind]), []).append(path)
    return [paths[0] for paths in sisters.values() if len({schemes.get(path) for path in paths}) > 1]


def find_unserved(schemes: Mapping[str, Scheme]) -> list[str]:
    """Modules with a scheme for which vLLM has no kernel."""
    return [path for path, scheme in schemes.items() if not is_served(scheme)]


def is_served(scheme: Scheme) -> bool:
    """Whether vLLM has a kernel for the scheme, with or without integer inputs."""
    if scheme.input_rounding is not None:
        return scheme.bits == scheme.input_rounding.bits == 8 and scheme.strategy is not Strategy.group
    if scheme.strategy is Strategy.group and scheme.group not in GROUPS:
        return False
    return scheme.bits in WIDTHS and scheme.strategy is not Strategy.tensor


def describe_vllm_limits(model: Model, schemes: Mapping[str, Scheme]) -> tuple[str, ...]:
    """Notes for users who want to serve the model with vLLM; transformers loads it in any case."""
    notes = []
    if split := find_split(model, schemes):
        notes.append(
            "vLLM will refuse the saved model, but transformers loads it: it fuses q, k and v, and gate and up, which "
            f"need one treatment, and {len(split)} groups differ, `{split[0]}` first; set components.fuse=true."
        )
    if unserved := find_unserved(schemes):
        notes.append(
            f"vLLM may have no kernel for {len(unserved)} packed modules, `{unserved[0]}` first: it has kernels for 4 "
            "and 8 bits with one scale per row or per group of 32, 64 or 128 weights, and with integer inputs for 8 "
            "bits with one scale per row or matrix; transformers loads them."
        )
    for path in schemes:
        if model.network.get_submodule(path) is model.network.get_output_embeddings():
            notes.append(
                f"vLLM and other servers may refuse the saved model, but transformers loads it: its LM head `{path}` "
                f'is packed; components.exclude=["{path}"] leaves it dense.'
            )
    return tuple(notes)
