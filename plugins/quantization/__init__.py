"""Built-in quantization."""

from collections.abc import Callable

from compressor import hookimpl
from compressor.contracts import Compressor

from .gptq import Gptq
from .hqq import Hqq
from .int4 import Int4
from .int8 import Int8
from .llm_int8 import LlmInt8
from .nf4 import Nf4
from .rtn import Rtn


@hookimpl
def register_compressors(register: Callable[[type[Compressor]], None]) -> None:
    for compressor in (Int8, LlmInt8, Int4, Rtn, Nf4, Hqq, Gptq):
        register(compressor)
