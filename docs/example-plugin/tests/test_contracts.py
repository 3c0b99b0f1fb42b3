"""The promises that the rest of `compressor` relies on: inherited, complete, two lines for a plugin."""

from compressor_example import Ternary, TopAgreement

from compressor.testing import CompressorContract, MetricContract


class TestTopAgreement(MetricContract):
    instance = TopAgreement()


class TestTernary(CompressorContract):
    instance = Ternary()
