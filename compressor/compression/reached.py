"""Which components the tokens of some sequences came to: an expert gets only the tokens that its router sends."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from compressor.data.reference import Reference
from compressor.models import Model
from compressor.models.matmul_inputs import MatmulInputs, experts_apart


def find_reached(
    model: Model, reference: Reference, names: Collection[str], start: int = 0, stop: int | None = None
) -> set[str]:
    """Those of the components `names` that a token of the sequences from `start` to `stop` came to.

    It is counted in one forward pass of the current model, not read off a gradient, which is zero too where a later
    matrix is zero. A token of zeros is not counted, because some families give an expert zeros for the tokens of
    others. So a token came to all matrices of an expert if it came to one of them.
    """
    owners: dict[str, list[str]] = {}
    for name in model.components:
        owners.setdefault(name_owner(name), []).append(name)
    watched = [name for owner in dict.fromkeys(map(name_owner, names)) for name in owners[owner]]
    found: set[str] = set()
    noted: list[tuple[set[str], Tensor]] = []

    def note(seen: Sequence[str], inputs: Tensor) -> None:
        if not found.issuperset(owners_seen := set(map(name_owner, seen))):
            noted.append((owners_seen, inputs.any()))

    views = {name: model.weight_views[name] for name in watched}
    with torch.no_grad(), experts_apart(view.owner for view in views.values()), MatmulInputs(views, note):
        for _, tokens in reference.batches(start, stop):
            model.logits(tokens[:, :-1], reference.continuation_tokens)
            # The device is waited for once in a batch, and not once for each product.
            flags = torch.stack([is_reached for _, is_reached in noted]).tolist() if noted else []
            for (seen, _), is_reached in zip(noted, flags, strict=True):
                found.update(seen if is_reached else ())
            noted.clear()
    return {name for name in names if name_owner(name) in found}


def name_owner(name: str) -> str:
    """The expert or module that a component is a matrix of: `experts.down_proj:2` -> `experts:2`."""
    path, _, part = name.partition(":")
    parent = path.rpartition(".")[0]
    return f"{parent}:{part.partition('.')[0]}" if part[:1].isdigit() else parent
