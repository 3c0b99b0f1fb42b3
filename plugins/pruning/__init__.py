"""Built-in pruning."""

from collections.abc import Callable

from compressor import hookimpl
from compressor.contracts import Compressor

from .magnitude import Magnitude
from .obd import Obd
from .random import Random
from .sparsegpt import SparseGpt
from .structured import Structured
from .swaps import Swaps
from .wanda import Wanda


@hookimpl
def register_compressors(register: Callable[[type[Compressor]], None]) -> None:
    for compressor in (Magnitude, Obd, Random, SparseGpt, Structured, Swaps, Wanda):
        register(compressor)
