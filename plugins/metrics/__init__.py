"""Built-in metrics."""

from collections.abc import Callable

from compressor import hookimpl
from compressor.contracts import Metric

from .divergent_perplexity import DivergentPerplexity
from .expected_fdtm import ExpectedFdtm
from .fdtm import Fdtm
from .kl import Kl
from .margin_noise import MarginNoise
from .perplexity import Perplexity
from .sdtm import Sdtm


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    for metric in (Fdtm, Sdtm, DivergentPerplexity, Perplexity, Kl, MarginNoise, ExpectedFdtm):
        register(metric)
