"""Outputs of one forward pass at the scored positions. Each is computed once, at its first use."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar

from compressor.contracts.types import Reads
from compressor.errors import PluginError

if TYPE_CHECKING:
    from torch import Tensor

Runners = dict[int, tuple["Tensor", "Tensor"]]
"""Number of runners-up -> their ids and margins."""


class Readout:
    """Quantities computed from `logits` `[sequence, position, vocabulary]` for `tokens` `[sequence, position]`.

    `logits` may be a function, which is called only if they are read. `counted` `[sequence, position]` marks positions
    to score; all are true on continuations. `runners` caches the results of `runners_up`, and may be shared between
    readouts. `leading` `[sequence]` is given if nothing else was computed.
    """

    def __init__(
        self,
        logits: Tensor | Callable[[], Tensor],
        tokens: Tensor,
        counted: Tensor | None = None,
        runners: Runners | None = None,
        leading: Tensor | None = None,
    ) -> None:
        self._leading = leading
        self._logits = logits
        self.tokens = tokens
        self._counted = counted
        self._runners: Runners = {} if runners is None else runners

    def restricted(self, reads: Reads, owner: str) -> RestrictedReadout:
        """A view for a metric that declares `reads`; reading anything else raises PluginError."""
        return RestrictedReadout(self, reads, owner)

    @property
    def counted(self) -> Tensor:
        return self.tokens >= 0 if self._counted is None else self._counted

    @functools.cached_property
    def logits(self) -> Tensor:
        """`[sequence, position, vocabulary]`, as the model returns them."""
        return self._logits() if callable(self._logits) else self._logits

    @property
    def leading(self) -> Tensor:
        """`[sequence]`: number of leading positions at which the most likely token is the one in `tokens`."""
        if self._leading is not None:
            return self._leading
        return (self.predicted == self.tokens).long().cumprod(-1).sum(-1)

    @functools.cached_property
    def predicted(self) -> Tensor:
        """`[sequence, position]` most likely token; ties go to the lowest id."""
        return self.logits.argmax(-1)

    @functools.cached_property
    def log_probabilities(self) -> Tensor:
        """`[sequence, position, vocabulary]` in float32, nats."""
        return self.logits.float().log_softmax(-1)

    @functools.cached_property
    def reference_log_probability(self) -> Tensor:
        """`[sequence, position]` of `tokens`, in float32, nats."""
        if "log_probabilities" in self.__dict__:
            return self.log_probabilities.gather(-1, self.tokens[..., None]).squeeze(-1)
        logits = self.logits.float()
        return logits.gather(-1, self.tokens[..., None]).squeeze(-1) - logits.logsumexp(-1)

    def logits_at(self, ids: Tensor) -> Tensor:
        """`[sequence, position, id]` in float32 at the given ids `[sequence, position, id]`."""
        return self.logits.gather(-1, ids).float()

    def runners_up(self, count: int) -> tuple[Tensor, Tensor]:
        """The `count` most likely tokens other than `tokens`: ids and margins, both `[sequence, position, count]`.

        A margin is the logit of the token minus that of the runner-up, in float32. A smaller vocabulary gives fewer.
        """
        if count not in self._runners:
            others = self.logits.float().scatter(-1, self.tokens[..., None], -math.inf)
            best = others.topk(min(count, others.shape[-1] - 1), dim=-1)
            self._runners[count] = (best.indices, self.logits_at(self.tokens[..., None]) - best.values)
        return self._runners[count]


class RestrictedReadout(Readout):
    """A view of a readout that allows only what a metric declared in `reads`, and notices what it changes."""

    NEEDS: ClassVar[dict[str, Reads]] = {
        "leading": Reads.LEADING,
        "predicted": Reads.PREDICTED,
        "reference_log_probability": Reads.REFERENCE,
        "log_probabilities": Reads.DISTRIBUTION,
        "logits": Reads.DISTRIBUTION,
        "logits_at": Reads.LOGITS,
        "runners_up": Reads.LOGITS,
    }

    def __init__(self, whole: Readout, reads: Reads, owner: str) -> None:
        self._whole, self._reads, self._owner = whole, reads, owner
        self._given: list[tuple[str, Tensor, int]] = []

    def runners_up(self, count: int) -> tuple[Tensor, Tensor]:
        found = self._whole.runners_up(count)
        for tensor in found:
            self._note("runners_up", tensor)
        return found

    def _note(self, name: str, value: Any) -> None:  # noqa: ANN401 - any attribute of a readout
        """Remember the version of a tensor that is given away. In inference mode, tensors have none."""
        if hasattr(value, "is_inference") and not value.is_inference():
            self._given.append((name, value, value._version))

    def list_changed(self) -> list[str]:
        """The outputs that were changed in place since they were read."""
        return [name for name, tensor, version in self._given if tensor._version != version]

    def __getattribute__(self, name: str) -> object:
        get = object.__getattribute__
        if name.startswith("_") or name == "list_changed":
            return get(self, name)
        need = get(self, "NEEDS").get(name)
        if need is not None and not need & get(self, "_reads"):
            raise PluginError(
                f"metric `{get(self, '_owner')}` reads `{name}` without declaring it; "
                f"add Reads.{need.name} to its `reads`"
            )
        value = get(self, name) if name == "runners_up" else getattr(get(self, "_whole"), name)
        get(self, "_note")(name, value)
        return value
