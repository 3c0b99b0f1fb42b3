"""The global state of torch, on which all later results depend: a plugin must leave it as it was. Imports no torch."""

import sys
from typing import Any, NamedTuple


class TorchState(NamedTuple):
    """What a plugin could change for everything that runs after it; the names are for errors."""

    default_dtype: Any
    computes_gradients: bool
    threads: int
    is_deterministic: bool
    only_warns: bool
    matmul_precision: str
    default_device: Any

    def list_changes(self, after: "TorchState") -> str:
        """What is different after, and how; empty if all is the same."""
        return ", ".join(
            f"{name.replace('_', ' ')} from {old} to {new}"
            for name, old, new in zip(self._fields, self, after, strict=True)
            if old != new
        )


def read_torch() -> TorchState | None:
    """The state now, in less than a microsecond; None if torch is not imported yet."""
    torch: Any = sys.modules.get("torch")
    devices: Any = sys.modules.get("torch.utils._device")  # torch's own getter takes ten times as long as all the rest
    if torch is None or devices is None:
        return None
    return TorchState(
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_float32_matmul_precision(),
        devices.CURRENT_DEVICE,
    )


def restore_torch(before: TorchState | None) -> str:
    """Go back to the state `before`; returns what was different.

    If torch was imported since, that is the state in which torch starts, with as many threads as there are now.
    """
    after = read_torch()
    if before == after or after is None:
        return ""
    torch: Any = sys.modules["torch"]
    wanted = before or TorchState(torch.float32, True, after.threads, False, False, after.matmul_precision, None)
    changes = wanted.list_changes(after)
    if changes:
        torch.set_default_dtype(wanted.default_dtype)
        torch.set_grad_enabled(wanted.computes_gradients)
        torch.set_num_threads(wanted.threads)
        torch.use_deterministic_algorithms(wanted.is_deterministic, warn_only=wanted.only_warns)
        torch.set_float32_matmul_precision(wanted.matmul_precision)
        torch.set_default_device(wanted.default_device)
    return changes
