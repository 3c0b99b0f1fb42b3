"""Which weights of a compressed model may be trained, and which must keep their values."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from torch import nn

from compressor.contracts import QuantizedMatrix, Reconstruction, Training, Treatment
from compressor.models import Model
from compressor.recovery.masks import Masks
from compressor.recovery.optimizer import Optimizer
from compressor.recovery.processes import Processes
from compressor.recovery.scales import TrainedScales


@dataclass(frozen=True)
class TrainedWeights:
    """`pruned` components lost weights, which stay zero. `frozen` ones take fewer bits, and stay as they are.

    Of those that are integers, the `scales` are trained.
    """

    model: Model
    pruned: frozenset[str]
    frozen: frozenset[str]
    scales: Mapping[str, TrainedScales] = field(default_factory=dict)

    def list_parameters(self, inside: nn.Module, embeddings: bool = True) -> list[nn.Parameter]:
        """The parameters of a module all of whose weights may be trained, each once.

        Without `embeddings`, the embedding and the LM head stay as they are.
        """
        kept = self.outer if not embeddings else frozenset()
        kept |= {id(self.model.weight_views[name].parameter) for name in self.frozen}
        return [each for each in inside.parameters() if each.is_floating_point() and id(each) not in kept]

    def list_scales(self, inside: nn.Module, embeddings: bool = True) -> list[TrainedScales]:
        """The scales of the quantized components of a module."""
        wanted = {id(parameter) for parameter in inside.parameters()} - (frozenset() if embeddings else self.outer)
        return [scales for scales in self.scales.values() if id(scales.view.parameter) in wanted]

    @property
    def outer(self) -> frozenset[int]:
        """The ids of the parameters of the embedding and the LM head."""
        network = self.model.network
        modules = (network.get_input_embeddings(), network.get_output_embeddings())
        return frozenset(id(each) for module in modules if module is not None for each in module.parameters())

    def make_optimizer(
        self,
        inside: nn.Module,
        options: Training | Reconstruction,
        embeddings: bool = True,
        processes: Processes | None = None,
    ) -> Optimizer:
        """AdamW for all weights of a module that may be trained, by this process or by several."""
        parameters = self.list_parameters(inside, embeddings)
        owned = {id(parameter) for parameter in parameters}
        names = [name for name, view in self.model.weight_views.items() if id(view.parameter) in owned]
        clip = options.clip if isinstance(options, Training) else math.inf
        scales = self.list_scales(inside, embeddings)
        masks, together = self.make_masks(names), processes or Processes()
        return Optimizer(parameters, masks, options.learning_rate, options.weight_decay, clip, scales, together)

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
    matrices = {name: matrix for name, matrix in quantized.items() if matrix is not None}
    return TrainedWeights(model, frozenset(kept) - frozen, frozenset(frozen), make_scales(model, matrices))


def make_scales(model: Model, quantized: Mapping[str, QuantizedMatrix]) -> dict[str, TrainedScales]:
    """The scales of quantized components, as they are before training."""
    views = model.weight_views
    return {name: TrainedScales(views[name], matrix.to(model.device)) for name, matrix in quantized.items()}
