"""Which weights of a compressed model may be trained, and which must keep their values."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from torch import nn

from compressor.contracts import QuantizedMatrix, Reconstruction, Training, Treatment
from compressor.models import Model
from compressor.recovery.masks import Masks
from compressor.recovery.optimizer import Optimizer


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

    def make_optimizer(
        self, inside: nn.Module, options: Training | Reconstruction, embeddings: bool = True
    ) -> Optimizer:
        """AdamW for all weights of a module that may be trained."""
        parameters = self.list_parameters(inside, embeddings)
        owned = {id(parameter) for parameter in parameters}
        names = [name for name, view in self.model.weight_views.items() if id(view.parameter) in owned]
        clip = options.clip if isinstance(options, Training) else math.inf
        return Optimizer(parameters, self.make_masks(names), options.learning_rate, options.weight_decay, clip)

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
