"""Built-in metrics."""

from collections.abc import Callable

from compressor import hookimpl
from compressor.contracts import Metric
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.perplexity import Perplexity
from compressor_plugins.metrics.sdtm import Sdtm


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    for metric in (Fdtm, Sdtm, DivergentPerplexity, Perplexity, Kl):
        register(metric)
