"""Runs the decoder layers one at a time, with the arguments that the model itself gives them; checked before use.

The model's own forward pass is run with a stand-in for every layer. The stand-in records the arguments of the layer and
returns its input, so embeddings, masks and rotary tables are computed by the model itself, at almost no cost. In the
same way the model itself computes the logits from the last layer's output. Where the model takes a key-value cache,
later positions can be run after earlier ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from compressor.evaluation.module_cache import ModuleCache
from compressor.models.components import find_layers
from compressor.models.forward import run_network
from compressor.models.model import Model
from compressor.models.patching import patched

log = logging.getLogger(__name__)
CHECK_SHAPE = (2, 7)
"""Sequences and tokens of the check."""
HIDDEN = "hidden_states"
ROUNDING = 1e-4
"""How much logits of split positions may differ, as a share of the largest logit."""
StandIn = Callable[[int, tuple[Any, ...], dict[str, Any]], Tensor]


class CannotReplay(Exception):
    """The layers of this model, run one at a time, do not give what the model gives; the text says why."""


@dataclass(frozen=True)
class LayerInputs:
    """What the layers get for `tokens` `[sequence, length]`.

    `hidden` is the first layer's input, `calls` are the other arguments of each layer. `cache` is the key-value cache
    among these arguments; each branch replaces it by its own.
    """

    tokens: Tensor
    hidden: Tensor
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    cache: Cache | None = None


class LayerReplay:
    """The decoder layers of `model`, to be run one at a time; raises CannotReplay where that changes the logits.

    `spans` holds, for each component that only layers use, the first and the last layer that use its parameter. `tied`
    are the components that share memory with another component. `splits_positions` says whether later positions may be
    run after earlier ones; that is so in float32, and is exact up to rounding.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.layers = find_layers(model.network)[1]
        self._wrappers = self._find_wrappers()
        self.spans = self._find_spans()
        self.tied = self._find_tied()
        self._check()
        self.splits_positions = self._check_splits()

    def contains(self, names: Collection[str]) -> bool:
        """Are these components used by layers only?"""
        return all(name in self.spans for name in names)

    @torch.no_grad()
    def enter(self, tokens: Tensor, past: int | None = None) -> LayerInputs:
        """The layers' inputs for `tokens` `[sequence, length]`.

        With `past`, only for the positions from there on; a branch's key-value cache then holds the earlier ones.
        """
        cache = None if past is None else self._fill_cache(past)
        tokens = tokens[:, past:]
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        inputs: list[Tensor] = []

        def record(index: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
            given = (named[HIDDEN], *arguments) if HIDDEN in named else arguments
            hidden: Tensor = given[0]
            if index != len(calls) or (inputs and hidden is not inputs[0]):
                raise CannotReplay("something happens between its layers")
            inputs.append(hidden)
            calls.append((given[1:], {name: value for name, value in named.items() if name != HIDDEN}))
            return hidden

        with self._replaced(record):
            run_network(self.model.network, tokens.to(self.model.device), 1, use_cache=past is not None, cache=cache)
        if len(calls) != len(self.layers):
            raise CannotReplay("its forward pass does not call every layer once")
        return LayerInputs(tokens, inputs[0], calls, cache)

    def make_cache(self) -> Cache:
        """An empty key-value cache for a branch."""
        return DynamicCache(config=self.model.network.config)

    @torch.no_grad()
    def run(self, index: int, inputs: LayerInputs, hidden: Tensor, cache: Cache | None = None) -> Tensor:
        """`[sequence, length, width]`: the output of the layer `index` for `hidden`; `cache` is the branch's own."""

        def own(value: object) -> object:
            return cache if value is inputs.cache else value

        arguments, named = inputs.calls[index]
        output = self.layers[index](hidden, *map(own, arguments), **{name: own(value) for name, value in named.items()})
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def run_layers(self, layers: range, inputs: LayerInputs, hidden: Tensor, cache: Cache | None = None) -> Tensor:
        """As `run`, for several layers one after the other."""
        for index in layers:
            hidden = self.run(index, inputs, hidden, cache)
        return hidden

    @torch.no_grad()
    def leave(self, inputs: LayerInputs, hidden: Tensor, keep: int) -> Tensor:
        """`[sequence, keep, vocabulary]`: the logits at the last `keep` positions, from the last layer's output."""
        with self._replaced(lambda index, arguments, named: hidden):
            return self.model.logits(inputs.tokens, keep)

    @contextmanager
    def _replaced(self, stand_in: StandIn) -> Iterator[None]:
        """Inside, the network calls `stand_in` in place of each layer, with the layer's number and its arguments."""

        def forward(index: int, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - any arguments of a layer
            return self._wrappers[index](stand_in(index, arguments, named))

        with patched({layer: partial(forward, index) for index, layer in enumerate(self.layers)}):
            yield

    def _find_wrappers(self) -> list[Callable[[Tensor], Any]]:
        """For each layer, what makes its return value from hidden states: these alone, or a tuple with None behind."""
        wrappers: dict[int, Callable[[Tensor], Any]] = {}

        def record(index: int, module: nn.Module, inputs: object, output: object) -> None:
            others = [None] * (len(output) - 1) if isinstance(output, tuple) else None
            wrappers[index] = (lambda hidden: hidden) if others is None else lambda hidden: (hidden, *others)

        handles = [layer.register_forward_hook(partial(record, index)) for index, layer in enumerate(self.layers)]
        try:
            self.model.logits(torch.zeros(CHECK_SHAPE, dtype=torch.long), 1)
        finally:
            for handle in handles:
                handle.remove()
        if len(wrappers) != len(self.layers):
            raise CannotReplay("its forward pass does not call every layer")
        return [wrappers[index] for index in range(len(self.layers))]

    def _find_spans(self) -> dict[str, tuple[int, int]]:
        users: dict[int, list[int]] = {}
        for index, layer in enumerate(self.layers):
            for parameter in layer.parameters():
                users.setdefault(id(parameter), []).append(index)
        layers = set(self.layers.modules())
        for module in self.model.network.modules():
            if module not in layers:
                for parameter in module.parameters(recurse=False):
                    users.pop(id(parameter), None)
        found = {name: users.get(id(view.parameter)) for name, view in self.model.weight_views.items()}
        return {name: (indices[0], indices[-1]) for name, indices in found.items() if indices}

    def _find_tied(self) -> frozenset[str]:
        places: dict[tuple[int, int], list[str]] = {}
        for name, weight_view in self.model.weight_views.items():
            places.setdefault((id(weight_view.parameter), int(weight_view.view().storage_offset())), []).append(name)
        return frozenset(name for names in places.values() if len(names) > 1 for name in names)

    def _check(self) -> None:
        """Change a component of every layer and of every kind, one at a time; compare with the model's own logits.

        One at a time on purpose: it finds layers that read what an earlier layer has left behind, because that would
        be out of date.
        """
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.model.vocabulary, CHECK_SHAPE, generator=generator)
        inputs, keep = self.enter(tokens), CHECK_SHAPE[1] - 2
        hidden = [inputs.hidden]
        for index in range(len(self.layers)):
            hidden.append(self.run(index, inputs, hidden[-1]))
        self._compare(inputs, hidden[-1], keep, "its layers")
        for name in self._choose_components():
            first = self.spans[name][0]
            cache = ModuleCache(self.layers[first])
            with cache.recording():
                self.run(first, inputs, hidden[first])
            weight = self.model.read(name)
            with self.model.swapped({name: weight * 0.5}):
                with cache.serving([self.model.weight_views[name].owner]):
                    branch = self.run(first, inputs, hidden[first])
                branch = self.run_layers(range(first + 1, len(self.layers)), inputs, branch)
                self._compare(inputs, branch, keep, f"its layers with `{name}` changed")

    def _fill_cache(self, positions: int) -> Cache:
        """A key-value cache that seems to hold so many positions, so that the model makes arguments for the next."""
        cache = self.make_cache()
        for index in range(len(self.layers) if positions else 0):
            nothing = torch.zeros(1, 1, positions, 1, device=self.model.device)
            cache.update(nothing, nothing, index)
        return cache

    def _check_splits(self) -> bool:
        """Run the early positions, then the later ones of one sequence: are the logits the same up to rounding?"""
        if self.model.dtype is not torch.float32:
            return False
        tokens = torch.randint(self.model.vocabulary, CHECK_SHAPE, generator=torch.Generator().manual_seed(1))
        layers, cut, keep = range(len(self.layers)), 4, 2
        try:
            cache = self.make_cache()
            early = self.enter(tokens[:, :cut], 0)
            self.run_layers(layers, early, early.hidden, cache)
            cache.batch_select_indices(torch.tensor([1], device=self.model.device))
            inputs = self.enter(tokens[1:], cut)
            logits = self.leave(inputs, self.run_layers(layers, inputs, inputs.hidden, cache), keep)
        except Exception as error:  # whatever a family does with its cache: positions are then not split
            log.info("positions are not split: %s", error)
            return False
        own = self.model.logits(tokens, keep)[1:]
        return bool((logits - own).abs().max() <= ROUNDING * own.abs().max())

    def _choose_components(self) -> Iterator[str]:
        """A component of each layer, in turns of each kind."""
        by_layer: dict[int, dict[str, str]] = {}
        for name, (first, _) in self.spans.items():
            by_layer.setdefault(first, {}).setdefault(self.model.weight_views[name].component.kind, name)
        for turn, kinds in enumerate(by_layer.values()):
            names = list(kinds.values())
            extra = max(len(names) - len(by_layer), 0) // len(by_layer) + 1
            for step in range(extra):
                yield names[(turn * extra + step) % len(names)]

    def _compare(self, inputs: LayerInputs, hidden: Tensor, keep: int, what: str) -> None:
        replayed, own = self.leave(inputs, hidden, keep), self.model.logits(inputs.tokens, keep)
        if not torch.equal(replayed, own):
            raise CannotReplay(f"{what}, run one by one, do not give its own logits")
