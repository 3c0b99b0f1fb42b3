"""Find the weight matrices of a model, in every family."""

import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from compressor.contracts import Component
from compressor.errors import ConfigError, ModelError, suggest
from compressor.models import architectures
from compressor.models.architectures import Part
from compressor.models.blocks import group_inputs
from compressor.models.weight_views import WeightView
from compressor.settings import compile_pattern

MATCHING_SECONDS = 5.0
"""Time to match all patterns of a setting with all names; a pattern with nested repetitions can take for ever."""


def find_components(
    network: PreTrainedModel,
    stored_bits: Mapping[str, int] | int,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> dict[str, WeightView]:
    """Weight views by component name, ordered by layer, and within a layer as in the model.

    `stored_bits` are the bits of one weight on disk, for all parameters or by parameter name. `include` and `exclude`
    are regular expressions that are searched in names; the embedding and the LM head are components only if `include`
    matches them. Raises ConfigError for an invalid pattern, and for patterns that match nothing.
    """
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    shared: set[int] = set()

    def build(name: str, kind: str, layer: int | None, place: _Place, part: Part) -> WeightView:
        parameter = place.parameter
        bits = stored_bits if isinstance(stored_bits, int) else stored_bits[names[id(parameter)]]
        view = part(parameter.detach())
        component = Component(name, kind, layer, (architectures.count_rows(view), view.shape[-1]), bits)
        return WeightView(component, place.owner, place.attribute, part)

    weight_views: dict[str, WeightView] = {}
    prefix, layers = find_layers(network)
    config = network.config.get_text_config()
    for index, layer in enumerate(layers):
        for place in _find_places(layer, config):
            if id(place.parameter) in shared:
                continue
            shared.add(id(place.parameter))
            for name, kind, part in place.components(f"{prefix}.{index}.", config):
                weight_views[name] = build(name, kind, index, place, part)
    weight_views = group_inputs(network, weight_views)
    paths = {id(module): path for path, module in network.named_modules()}
    outer: dict[str, WeightView] = {}
    for module in (network.get_input_embeddings(), network.get_output_embeddings()):
        if isinstance(module, nn.Embedding | nn.Linear):
            path, keep = paths[id(module)], architectures.keep_orientation
            place = _Place(path, network, module, "weight", keep, None)
            outer[path] = build(path, path.rpartition(".")[2], None, place, keep)
    return _select_components(weight_views, outer, include, exclude)


def find_layers(network: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Module path and list of the decoder layers; raises ModelError if there is none.

    It is the ModuleList that has as many entries as the config has layers; of several, the one with most parameters.
    """
    wanted = getattr(network.config.get_text_config(), "num_hidden_layers", None)
    decoder = network.get_decoder()
    paths = {id(module): path for path, module in network.named_modules()}
    for root in (decoder, network):
        lists = [module for module in root.modules() if isinstance(module, nn.ModuleList) and len(module)]
        lists = [module for module in lists if len(module) == wanted] or lists
        if lists:
            layers = max(lists, key=lambda module: sum(p.numel() for p in module.parameters()))
            return paths[id(layers)], layers
    raise ModelError(
        f"{type(network).__name__} has no list of decoder layers (a ModuleList); it must be a decoder-only model, "
        "choose another checkpoint"
    )


@dataclass(frozen=True)
class _Place:
    """A parameter with one matrix, or with a stack of one matrix for each expert, at `path` inside its layer."""

    path: str
    parent: nn.Module
    owner: nn.Module
    attribute: str
    orient: Part
    experts: int | None

    @property
    def parameter(self) -> nn.Parameter:
        parameter: nn.Parameter = getattr(self.owner, self.attribute)
        return parameter

    def components(self, prefix: str, config: Any) -> Iterator[tuple[str, str, Part]]:  # noqa: ANN401
        """Name, kind and view of each component in the parameter."""
        leaf = self.path.rpartition(".")[2]
        wholes: dict[int | None, Part] = {None: self.orient}
        if self.experts is not None:
            stacked = {expert: architectures.select_expert(self.experts, expert) for expert in range(self.experts)}
            wholes = {expert: architectures.compose_parts(self.orient, part) for expert, part in stacked.items()}
        for expert, whole in wholes.items():
            rows = architectures.count_rows(whole(self.parameter.detach()))
            for suffix, kind, part in architectures.split_matrix(leaf, self.parent, rows, config):
                ending = ".".join(str(word) for word in (expert, suffix) if word not in (None, ""))
                name = f"{prefix}{self.path}" + (f":{ending}" if ending else "")
                yield name, kind, architectures.compose_parts(part, whole)


def _find_places(layer: nn.Module, config: Any) -> Iterator[_Place]:  # noqa: ANN401
    """All matrices of a decoder layer: those of linear modules that are not routers, and stacks of experts."""
    for path, module in layer.named_modules():
        above = layer.get_submodule(path.rpartition(".")[0])
        if isinstance(module, nn.Linear | Conv1D):
            orient: Part = (
                architectures.flip_orientation if isinstance(module, Conv1D) else architectures.keep_orientation
            )
            if not architectures.is_router(path.split("."), orient(module.weight).shape):
                yield _Place(path, above, module, "weight", orient, None)
        elif not isinstance(module, nn.modules.conv._ConvNd):
            for attribute, parameter in module.named_parameters(recurse=False):
                experts = architectures.count_experts(module, attribute, parameter.shape)
                if experts is None:
                    continue
                orient = architectures.experts_orientation(module, attribute, parameter.shape, config)
                inner = path if attribute == "weight" else f"{path}.{attribute}".lstrip(".")
                parent = above if attribute == "weight" else module
                yield _Place(inner, parent, module, attribute, orient, experts)


def _select_components(
    weight_views: dict[str, WeightView], outer: dict[str, WeightView], include: Sequence[str], exclude: Sequence[str]
) -> dict[str, WeightView]:
    known = outer | weight_views
    wanted = _match_names("include", include, known) if include else set(weight_views)
    kept = wanted - _match_names("exclude", exclude, known)
    if not kept:
        raise ConfigError(
            f"`components.exclude` {list(exclude)!r} leaves no component; at least one must stay, exclude fewer"
        )
    chosen: dict[str, WeightView] = {}
    taken: set[int] = set()
    for name, weight_view in known.items():
        parameter = id(weight_view.parameter)
        if name not in kept or (name in outer and parameter in taken):
            continue
        taken.add(parameter)
        chosen[name] = weight_view
    return chosen


def _match_names(setting: str, patterns: Sequence[str], names: Collection[str]) -> set[str]:
    """The names that a pattern matches.

    Raises ConfigError for a pattern that is invalid or takes too long, or if no name matches any.
    """
    matched: set[str] = set()
    until = time.monotonic() + MATCHING_SECONDS
    for pattern in patterns:
        expression = compile_pattern(f"components.{setting}", pattern)
        try:
            matched |= {name for name in names if expression.search(name, timeout=max(until - time.monotonic(), 0.01))}
        except (TimeoutError, MemoryError):
            raise ConfigError(
                f"`components.{setting}` must match within {MATCHING_SECONDS:g} s, and {pattern!r:.200} takes longer; "
                "simplify it, a repetition inside of a repetition takes long"
            ) from None
    if patterns and not matched:
        leaves = {name.partition(":")[0].rpartition(".")[2] for name in names}
        word = (re.findall(r"\w+", patterns[0]) or [patterns[0]])[-1]
        raise ConfigError(
            f"`components.{setting}` {list(patterns)!r} must match a component, and of {len(names)} matches none; "
            f"{suggest(word, leaves)}"
        )
    return matched
