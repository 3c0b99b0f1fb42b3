"""Which weights of a compressed model may be trained, and which must keep their values."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from compressor.contracts import QuantizedMatrix, Treatment
from compressor.models import Model
from compressor.recovery.masks import Masks


@dataclass(frozen=True)
class TrainedWeights:
    """`pruned` components lost weights, which stay zero; `frozen` ones take fewer bits, and stay as they are."""

    model: Model
    pruned: frozenset[str]
    frozen: frozenset[str]

    def list_parameters(self, inside: nn.Module, embeddings: bool = True) -> list[nn.Parameter]:
        """The parameters of a module that may be trained, each once.

        Without `embeddings`, the embedding and the LM head stay as they are.
        """
        network = self.model.network
        outer = () if embeddings else (network.get_input_embeddings(), network.get_output_embeddings())
        kept = {id(parameter) for module in outer if module is not None for parameter in module.parameters()}
        kept |= {id(self.model.weight_views[name].parameter) for name in self.frozen}
        return [each for each in inside.parameters() if each.is_floating_point() and id(each) not in kept]

    def make_masks(self, names: Collection[str] | None = None) -> Masks:
        """Masks of the pruned components, or of those among `names`."""
        return Masks.of(self.model, self.pruned if names is None else self.pruned & set(names))


def find_trained(
    model: Model,
    kept: Mapping[str, Treatment],
    packed_bits: Mapping[str, int],
    quantized: Mapping[str, QuantizedMatrix | None],
) -> TrainedWeights:
    """What a plan that is kept on the model leaves to training.

    A component is frozen if its compressor gave integers or fewer bits than the checkpoint's weights take, or changes
    its inputs: training could not give weights of that form.
    """
    components = model.components
    frozen = {
        name
        for name in kept
        if quantized.get(name) is not None
        or packed_bits[name] < components[name].parameters * components[name].stored_bits
        or model.input_transforms.find(name) is not None
    }
    return TrainedWeights(model, frozenset(kept) - frozen, frozenset(frozen))
