"""Runs the decoder layers one at a time, with the arguments that the model itself gives them; proven before use.

The model's own forward pass runs with a stand-in for every layer, which notes what the layer is called with and hands
its input on: embeddings, masks and rotary tables cost next to nothing. The same trick runs what follows the layers.
Where the model takes a cache, later positions may be run apart from earlier ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
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
PROOF = (2, 7)
"""Sequences and tokens on which a replay is proven."""
HIDDEN = "hidden_states"
ROUNDING = 1e-4
"""Logits of split positions may differ by so much of the largest."""
StandIn = Callable[[int, tuple[Any, ...], dict[str, Any]], Tensor]


class CannotReplay(Exception):
    """The layers of this model do not run on their own as they do inside it; the text says why."""


@dataclass(frozen=True)
class Entry:
    """What the layers are given for `tokens` `[sequence, length]`: `hidden` enters the first, `calls` the arguments.

    `cache` is the one among the arguments, for which each branch has its own.
    """

    tokens: Tensor
    hidden: Tensor
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]]
    cache: Cache | None = None


class LayerReplay:
    """The decoder layers of `model`, each to be run on its own; raises CannotReplay where that is not the model.

    `spans` is, by component, the first and the last layer that use its parameter; components that are used outside of
    the layers have none. `entangled` are those that share weights with another component. `splits` says whether
    positions may be run in parts: in float32, up to rounding.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.layers = find_layers(model.network)[1]
        self._forms: list[Callable[[Tensor], Any]] = []
        self._forms = self._find_forms()
        self.spans = self._find_spans()
        self.entangled = self._find_entangled()
        self._prove()
        self.splits = self._prove_splits()

    @torch.no_grad()
    def enter(self, tokens: Tensor, past: int | None = None) -> Entry:
        """The model's own embeddings and arguments for `tokens` `[sequence, length]`.

        With `past` for the positions from there on, after so many that are in a branch's cache.
        """
        cache = None if past is None else self._fill_cache(past)
        tokens = tokens[:, past:]
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        inputs: list[Tensor] = []

        def note(index: int, arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
            given = (named[HIDDEN], *arguments) if HIDDEN in named else arguments
            hidden: Tensor = given[0]
            if index != len(calls) or (inputs and hidden is not inputs[0]):
                raise CannotReplay("something happens between its layers")
            inputs.append(hidden)
            calls.append((given[1:], {name: value for name, value in named.items() if name != HIDDEN}))
            return hidden

        with self._replaced(note):
            run_network(self.model.network, tokens.to(self.model.device), 1, use_cache=past is not None, cache=cache)
        if len(calls) != len(self.layers):
            raise CannotReplay("its forward pass does not call every layer once")
        return Entry(tokens, inputs[0], calls, cache)

    def make_cache(self) -> Cache:
        """An empty one, for what a branch leaves to its later positions."""
        return DynamicCache(config=self.model.network.config)

    @torch.no_grad()
    def run(self, index: int, entry: Entry, hidden: Tensor, cache: Cache | None = None) -> Tensor:
        """`[sequence, length, width]`: of what a layer makes of `hidden`; `cache` is the branch's own."""

        def own(value: object) -> object:
            return cache if value is entry.cache else value

        arguments, named = entry.calls[index]
        output = self.layers[index](hidden, *map(own, arguments), **{name: own(value) for name, value in named.items()})
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    @torch.no_grad()
    def leave(self, entry: Entry, hidden: Tensor, keep: int) -> Tensor:
        """`[sequence, keep, vocabulary]`: the logits at the last `keep` positions, of what the last layer gave."""
        with self._replaced(lambda index, arguments, named: hidden):
            return self.model.logits(entry.tokens, keep)

    @contextmanager
    def _replaced(self, stand_in: StandIn) -> Iterator[None]:
        """Inside, the network calls `stand_in`, with the number and the arguments of a layer, in place of the layer."""

        def forward(index: int, *arguments: Any, **named: Any) -> Any:  # noqa: ANN401 - whatever a family passes
            return self._forms[index](stand_in(index, arguments, named))

        with patched({layer: partial(forward, index) for index, layer in enumerate(self.layers)}):
            yield

    def _find_forms(self) -> list[Callable[[Tensor], Any]]:
        """How each layer hands on its hidden state: as it is, or first in a tuple, of which the rest is left out."""
        forms: dict[int, Callable[[Tensor], Any]] = {}

        def note(index: int, module: nn.Module, inputs: object, output: object) -> None:
            others = [None] * (len(output) - 1) if isinstance(output, tuple) else None
            forms[index] = (lambda hidden: hidden) if others is None else lambda hidden: (hidden, *others)

        handles = [layer.register_forward_hook(partial(note, index)) for index, layer in enumerate(self.layers)]
        try:
            self.model.logits(torch.zeros(PROOF, dtype=torch.long), 1)
        finally:
            for handle in handles:
                handle.remove()
        if len(forms) != len(self.layers):
            raise CannotReplay("its forward pass does not call every layer")
        return [forms[index] for index in range(len(self.layers))]

    def _find_spans(self) -> dict[str, tuple[int, int]]:
        inside: dict[int, list[int]] = {}
        for index, layer in enumerate(self.layers):
            for parameter in layer.parameters():
                inside.setdefault(id(parameter), []).append(index)
        held = {id(parameter) for layer in self.layers for parameter in layer.parameters()}
        layers = set(self.layers.modules())
        for module in self.model.network.modules():
            if module not in layers:
                held -= {id(parameter) for parameter in module.parameters(recurse=False)}
        found = {
            name: inside[id(weight_view.parameter)]
            for name, weight_view in self.model.weight_views.items()
            if id(weight_view.parameter) in held
        }
        return {name: (min(layers), max(layers)) for name, layers in found.items()}

    def _find_entangled(self) -> frozenset[str]:
        places: dict[tuple[int, int], list[str]] = {}
        for name, weight_view in self.model.weight_views.items():
            places.setdefault((id(weight_view.parameter), int(weight_view.view().storage_offset())), []).append(name)
        return frozenset(name for names in places.values() if len(names) > 1 for name in names)

    def _prove(self) -> None:
        """Change every layer, and a component of every kind, alone, and compare with the model's own forward pass.

        One after the other on purpose: what a layer leaves behind for the others to read would be stale.
        """
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(self.model.vocabulary, PROOF, generator=generator)
        entry, keep = self.enter(tokens), PROOF[1] - 2
        hidden = [entry.hidden]
        for index in range(len(self.layers)):
            hidden.append(self.run(index, entry, hidden[-1]))
        self._compare(entry, hidden[-1], keep, "its layers")
        for name in self._choose_witnesses():
            first = self.spans[name][0]
            memo = ModuleCache(self.layers[first])
            with memo.recording():
                self.run(first, entry, hidden[first])
            weight = self.model.read(name)
            with self.model.swapped({name: weight * 0.5}):
                with memo.serving([self.model.weight_views[name].owner]):
                    branch = self.run(first, entry, hidden[first])
                for index in range(first + 1, len(self.layers)):
                    branch = self.run(index, entry, branch)
                self._compare(entry, branch, keep, f"its layers with `{name}` changed")

    def _fill_cache(self, positions: int) -> Cache:
        """One that looks as if it held so many positions: the model then makes the arguments of those that follow."""
        cache = self.make_cache()
        for index in range(len(self.layers) if positions else 0):
            nothing = torch.zeros(1, 1, positions, 1, device=self.model.device)
            cache.update(nothing, nothing, index)
        return cache

    def _prove_splits(self) -> bool:
        """Run all positions, and then the later ones of one sequence apart: is it the same up to rounding?"""
        if self.model.dtype is not torch.float32:
            return False
        tokens = torch.randint(self.model.vocabulary, PROOF, generator=torch.Generator().manual_seed(1))
        cut, keep = 4, 2
        try:
            cache = self.make_cache()
            self._run_all(self.enter(tokens[:, :cut], 0), cache)
            cache.batch_select_indices(torch.tensor([1], device=self.model.device))
            entry = self.enter(tokens[1:], cut)
            logits = self.leave(entry, self._run_all(entry, cache), keep)
        except Exception as error:  # whatever a family does with its cache: positions then stay together
            log.info("positions are not split: %s", error)
            return False
        own = self.model.logits(tokens, keep)[1:]
        return bool((logits - own).abs().max() <= ROUNDING * own.abs().max())

    def _run_all(self, entry: Entry, cache: Cache) -> Tensor:
        hidden = entry.hidden
        for index in range(len(self.layers)):
            hidden = self.run(index, entry, hidden, cache)
        return hidden

    def _choose_witnesses(self) -> Iterator[str]:
        """A component of each layer, and one of each kind, in turn."""
        by_layer: dict[int, dict[str, str]] = {}
        for name, (first, _) in self.spans.items():
            by_layer.setdefault(first, {}).setdefault(self.model.weight_views[name].component.kind, name)
        for turn, kinds in enumerate(by_layer.values()):
            names = list(kinds.values())
            extra = max(len(names) - len(by_layer), 0) // len(by_layer) + 1
            for step in range(extra):
                yield names[(turn * extra + step) % len(names)]

    def _compare(self, entry: Entry, hidden: Tensor, keep: int, what: str) -> None:
        replayed, own = self.leave(entry, hidden, keep), self.model.logits(entry.tokens, keep)
        if not torch.equal(replayed, own):
            raise CannotReplay(f"{what}, run one by one, do not give its own logits")
