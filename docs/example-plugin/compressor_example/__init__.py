"""An example plugin: the metric `top_agreement` and the compressor `ternary`."""

from collections.abc import Callable

from compressor import Compressor, Metric, hookimpl
from compressor_example.ternary import Ternary
from compressor_example.top_agreement import TopAgreement


@hookimpl
def register_metrics(register: Callable[[type[Metric]], None]) -> None:
    register(TopAgreement)


@hookimpl
def register_compressors(register: Callable[[type[Compressor]], None]) -> None:
    register(Ternary)
