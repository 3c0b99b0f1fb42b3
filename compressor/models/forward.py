"""Forward passes of any causal language model, in two halves: the body (all layers) and the head (logits).

The head starts from what the body returns, so `run_head(run_body(x))` is the same computation as `run_network(x)`.
Whatever a family does around its LM head (a scale, a soft cap) belongs to the head.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from compressor.errors import ModelError
from compressor.models.components import find_layers
from compressor.models.patching import patched


def run_network(
    network: PreTrainedModel, tokens: Tensor, keep: int, use_cache: bool = False, cache: object = None
) -> ModelOutput:
    """The network's output for `tokens` `[sequence, length]`, with `logits` at the last `keep` positions only.

    Gradients are recorded unless the caller switches them off.
    """
    extra = {} if cache is None else {"past_key_values": cache}
    with _narrowed_body(network, lambda hidden: hidden[:, -keep:].contiguous()):
        output = network(input_ids=tokens, use_cache=use_cache, **extra)
    output.logits = output.logits[:, -keep:]
    return output


@torch.no_grad()
def run_body(network: PreTrainedModel, tokens: Tensor, keep: int) -> Tensor:
    """`[sequence, keep, width]`: the body's output at the last `keep` positions of `tokens` `[sequence, length]`."""
    taken: list[Tensor] = []

    def take(hidden: Tensor) -> Tensor:
        taken.append(hidden[:, -keep:].contiguous())
        return hidden[:, -1:]

    with _narrowed_body(network, take):
        network(input_ids=tokens, use_cache=False)
    if len(taken) != 1:
        raise _refuse_halves(network)
    return taken[0]


def run_head(network: PreTrainedModel, hidden: Tensor) -> Tensor:
    """`[sequence, position, vocabulary]` of `hidden` `[sequence, position, width]`, as `run_body` gives it."""
    body = _find_body(network)
    if body is None:
        raise _refuse_halves(network)
    return _run_without_body(network, body, hidden)


@contextmanager
def checkpointed(layers: nn.ModuleList) -> Iterator[None]:
    """Inside, each layer stores only its input for the backward pass, which computes the layer again."""
    run = functools.partial(functools.partial, checkpoint)
    with patched({layer: run(layer.forward, use_reentrant=False, preserve_rng_state=False) for layer in layers}):
        yield


class FrozenHead:
    """The LM head of a network as it is now, and all that the family computes after it.

    It is a copy of the network without its body: the same forward code runs on it, so scales and soft caps are part of
    it. Modules that are replaced in the network later, and hooks or input transforms that are added there, do not
    reach the copy. Its parameters share memory with the network unless `copies` is set or they require gradients: an
    LM head of 150,000 tokens is large, and normally nobody writes to it. Call `own` before something does; a call of
    the head raises ModelError if a shared parameter was written to.
    """

    def __init__(self, network: PreTrainedModel, copies: bool = False) -> None:
        body = _find_body(network)
        if body is None:
            raise _refuse_halves(network)
        self.device = network.get_output_embeddings().weight.device
        self._body = nn.Identity()
        self._shared: list[tuple[nn.Parameter, int, nn.Parameter]] = []
        inside = set(body.modules())
        replacements: dict[int, Any] = {id(body): self._body}
        for module in network.modules():
            for parameter in () if module in inside else module.parameters(recurse=False):
                own = nn.Parameter(parameter.detach(), requires_grad=False)
                if copies or parameter.requires_grad:
                    own.data = own.data.clone()
                else:
                    self._shared.append((parameter, parameter._version, own))
                replacements[id(parameter)] = own
        # The memo of deepcopy: an object that is in it is not copied, but replaced by what is given there.
        self._network: PreTrainedModel = copy.deepcopy(network, replacements)

    def __call__(self, hidden: Tensor) -> Tensor:
        """`[sequence, position, vocabulary]` of `hidden` `[sequence, position, width]`, as `run_body` gives it."""
        self._check_unchanged()
        return _run_without_body(self._network, self._body, hidden)

    def own(self) -> None:
        """Copy the parameters that still share memory with the network; call it before training the network."""
        self._check_unchanged()
        for _, _, own in self._shared:
            own.data = own.data.clone()
        self._shared.clear()

    def _check_unchanged(self) -> None:
        if any(parameter._version != version for parameter, version, _ in self._shared):
            raise ModelError(
                "the weights of the LM head were changed, and the reference shares their memory; call "
                "`reference.head.own()` before you change them"
            )


@torch.no_grad()
def _run_without_body(network: PreTrainedModel, body: nn.Module, hidden: Tensor) -> Tensor:
    """The logits of the network, where `body` returns `hidden` `[sequence, position, width]` without computing."""
    answers = [_BodyOutput(last_hidden_state=hidden.contiguous())]
    with patched({body: lambda *args, **kwargs: answers.pop()}):
        tokens = torch.zeros(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        logits: Tensor | None = network(input_ids=tokens, use_cache=False).logits
    if answers or logits is None:
        raise _refuse_halves(network)
    return logits


class _BodyOutput(BaseModelOutputWithPast):  # type: ignore[misc]
    """Replaces the output of any family's body: fields that are not set are None."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("_"):
            raise AttributeError(name)


def _find_body(network: PreTrainedModel) -> nn.Module | None:
    """The module that runs all layers, called by the network's forward; None if the network runs them itself."""
    decoder: nn.Module = network.get_decoder()
    # `get_decoder` guesses by name: it may return the head, or the network itself.
    if decoder is not network and decoder is not network.get_output_embeddings():
        return decoder
    top, _, below = find_layers(network)[0].partition(".")
    return getattr(network, top) if below else None


@contextmanager
def _narrowed_body(network: PreTrainedModel, narrow: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside, the head receives `narrow` of the body's output `[sequence, position, width]`, if there is a body."""
    body = _find_body(network)

    def change(module: nn.Module, arguments: Any, output: Any) -> Any:  # noqa: ANN401 - torch's hooks
        if isinstance(output, tuple):
            return (narrow(output[0]), *output[1:])
        if "last_hidden_state" in output:
            output.last_hidden_state = narrow(output.last_hidden_state)
        return output

    handle = None if body is None else body.register_forward_hook(change)
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


def _refuse_halves(network: PreTrainedModel) -> ModelError:
    return ModelError(
        f"{type(network).__name__} must let the LM head run apart from the layers, and does not; ask for logits instead"
    )
