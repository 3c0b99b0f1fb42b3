"""The contract suite of compressors. Each promise is tested on the weights to which it applies."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from compressor.contracts import Compressor
from compressor.testing import compressor_promises, input_promises, integer_promises, row_promises
from compressor.testing.compressor_case import WEIGHTS, CompressorCase, make_weight
from compressor.testing.plugin_contract import PluginContract

Promise = Callable[[CompressorCase], None]
PROMISES: dict[Promise, Callable[[CompressorCase], bool]] = {
    compressor_promises.offer_is_valid: CompressorCase.always,
    compressor_promises.result_stands_in_for_the_weight: CompressorCase.always,
    compressor_promises.is_pure: CompressorCase.always,
    compressor_promises.many_amounts_are_as_each_alone: CompressorCase.always,
    compressor_promises.bits_fall_with_the_amount: CompressorCase.always,
    compressor_promises.amount_zero_changes_nothing: CompressorCase.starts_at_zero,
    compressor_promises.pruning_is_cumulative: CompressorCase.ranks_weights,
    compressor_promises.importance_is_an_order: CompressorCase.ranks_weights,
    integer_promises.integers_are_the_weight: CompressorCase.has_integers,
    integer_promises.integers_are_counted_exactly: CompressorCase.has_integers,
    integer_promises.integers_go_with_the_inputs: CompressorCase.has_integers,
    row_promises.rows_are_refused_where_they_do_not_fit: CompressorCase.always,
    row_promises.rows_go_each_its_own_way: CompressorCase.has_rows,
    row_promises.amount_zero_in_every_row_changes_nothing: CompressorCase.has_rows_from_zero,
    row_promises.rows_lose_what_was_asked_for: CompressorCase.ranks_weights_of_rows,
    input_promises.transformed_inputs_are_announced: CompressorCase.always,
    input_promises.transformed_inputs_stand_in_for_the_inputs: CompressorCase.transforms_inputs,
    input_promises.input_transform_is_pure: CompressorCase.transforms_inputs,
    input_promises.every_token_is_transformed_by_itself: CompressorCase.transforms_inputs,
}
"""Promise -> whether it applies to a case."""


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
        if plugin is None:
            return [*itertools.product(PROMISES, WEIGHTS)]
        cases = {name: CompressorCase(plugin, make_weight(name)) for name in WEIGHTS}
        return [
            (promise, name) for promise, name in itertools.product(PROMISES, WEIGHTS) if may_apply(promise, cases[name])
        ]

    def test_needs_are_gathered(self, plugin: Compressor) -> None:
        """A run gathers all calibration data in `needs`."""
        from compressor.compression.calibration import check_needs

        check_needs(plugin.name, plugin.needs)

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
