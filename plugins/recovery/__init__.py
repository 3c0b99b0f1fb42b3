"""Built-in recoveries."""

from collections.abc import Callable

from compressor import hookimpl
from compressor.contracts import Recovery

from .finetune import Finetune
from .least_squares import LeastSquares
from .reconstruct import Reconstruct


@hookimpl
def register_recoveries(register: Callable[[type[Recovery]], None]) -> None:
    for recovery in (Finetune, Reconstruct, LeastSquares):
        register(recovery)
