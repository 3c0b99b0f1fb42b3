"""The contract suite of compressors. Each promise is tested on the weights to which it applies."""

import itertools

import pytest

from compressor.compression.calibration import check_needs
from compressor.contracts import Compressor
from compressor.testing.compressor_case import WEIGHTS, CompressorCase, make_weight
from compressor.testing.compressor_promises import PROMISES, Promise
from compressor.testing.plugin_contract import PluginContract


class CompressorContract(PluginContract):
    """Tests the promises in `PROMISES` that apply to a `Compressor`, on every weight of `WEIGHTS`.

    If a test class overrides the fixture `plugin`, the plugin is only known in a test; promises that do not apply are
    then skipped.
    """

    contract = Compressor

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """One test for each promise and each weight to which it applies."""
        if "promise" in metafunc.fixturenames:
            pairs = self.list_promises(getattr(self, "instance", None))
            names = [f"{promise.__name__}-{weight}" for promise, weight in pairs]
            metafunc.parametrize(("promise", "weight"), pairs, ids=names)

    def list_promises(self, plugin: Compressor | None) -> list[tuple[Promise, str]]:
        """Pairs of a promise and the name of a weight to which it applies; all pairs if the plugin is not known."""
        pairs = [*itertools.product(PROMISES, WEIGHTS)]
        if plugin is None:
            return pairs
        cases = {name: CompressorCase(plugin, make_weight(name)) for name in WEIGHTS}
        return [(promise, name) for promise, name in pairs if may_apply(promise, cases[name])]

    def test_needs_are_gathered(self, plugin: Compressor) -> None:
        """A run gathers all calibration data in `needs`."""
        check_needs(plugin)

    def test_promise(self, plugin: Compressor, promise: Promise, weight: str) -> None:
        case = CompressorCase(plugin, make_weight(weight))
        if not may_apply(promise, case):
            pytest.skip("the promise does not apply")
        promise(case)


def may_apply(promise: Promise, case: CompressorCase) -> bool:
    """Whether a promise applies. True if the plugin fails, because a test reports that better than collection."""
    try:
        return PROMISES[promise](case)
    except Exception:
        return True
