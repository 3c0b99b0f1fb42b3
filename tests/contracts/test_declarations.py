"""What plugins declare about themselves is checked before any work, in one line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from compressor.artifacts.run_record import MetricRecord
from compressor.contracts import Compressor, Metric, Recovery, Schedule, TextWindows
from compressor.contracts.declarations import (
    check_compressor,
    check_metric,
    check_recovery,
    check_schedule,
    summarize_class,
)
from compressor.errors import PluginError
from compressor.plugins import installed
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.recovery.least_squares import LeastSquares
from compressor_plugins.schedules.uniform import Uniform
from tests.support.broken_plugins import broken
from tests.support.runs import make_settings, run

CHECKS: dict[type, Callable[[Any], None]] = {
    Metric: check_metric,
    Compressor: check_compressor,
    Schedule: check_schedule,
    Recovery: check_recovery,
}


def give(value: object) -> Callable[..., object]:
    return lambda self: value


METRICS: dict[str, tuple[dict[str, Any], str]] = {
    "label": ({"label": 5}, "`label` of metric `kl` of .* is 5; give a value of type str"),
    "label of two lines": ({"label": "K\nL"}, r"`label` of .* is 'K\\nL'; give one line"),
    "unit": ({"unit": None}, "`unit` of .* is None; give a value of type str"),
    "better": ({"better": "lower"}, "`better` of .* is 'lower'; give a value of type Better"),
    "reads": ({"reads": ()}, r"`reads` of .* is \(\); give a value of type Reads"),
    "text": ({"text": give("a.txt")}, r"`text\(\)` of .* is 'a.txt'; give TextWindows, or None"),
    "path": ({"text": give(TextWindows(path=""))}, r"`text\(\).path` of .* is ''; give the path"),
    "window": ({"text": give(TextWindows(window=1))}, r"`text\(\).window` of .* is 1; a whole number of at least 2"),
    "stride": ({"text": give(TextWindows(stride=True))}, r"`text\(\).stride` of .* is True"),
    "stride beyond the window": (
        {"text": give(TextWindows(window=8, stride=9))},
        r"`text\(\).stride` of .* is 9; it must be at most the window of 8",
    ),
    "tokens": ({"text": give(TextWindows(tokens=-5))}, r"`text\(\).tokens` of .* is -5"),
}
COMPRESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "transforms": ({"transforms_inputs": property(give("no"))}, "`transforms_inputs` of .* is 'no'; give .* bool"),
    "stored_as": ({"stored_as": "dense"}, "`stored_as` of compressor `magnitude` of .* is 'dense'; give a member of S"),
    "sequential": ({"sequential": 1}, "`sequential` of compressor `magnitude` of .* is 1"),
}
SCHEDULES: dict[str, tuple[dict[str, Any], str]] = {
    "repeats": ({"repeats": None}, "`repeats` of schedule `uniform` of .* is None; give a value of type bool"),
    "limits_files": ({"limits_files": give(None)}, r"`limits_files\(\)` of .* is None; it must be True or False"),
    "ranks_by": ({"ranks_by": give("kl")}, r"`ranks_by\(\)` of .* is 'kl'; give a sequence of names of metrics"),
    "ranks_by objects": ({"ranks_by": give([Kl])}, r"`ranks_by\(\)` of .*; give a sequence of names"),
    "ranks_by once": ({"ranks_by": give(iter(["kl"]))}, r"`ranks_by\(\)` of .*; give a sequence of names"),
    "name": ({"name": ClassVar}, "`name` of schedule .* is .*; give a value of type str"),
}
TABLES: dict[type, dict[str, tuple[dict[str, Any], str]]] = {Kl: METRICS, Magnitude: COMPRESSORS, Uniform: SCHEDULES}
CASES = [(base, *case) for base, cases in TABLES.items() for case in cases.values()]


@pytest.mark.parametrize(("base", "members", "message"), CASES)
def test_a_wrong_declaration_is_one_line(base: type, members: dict[str, Any], message: str) -> None:
    check = next(check for contract, check in CHECKS.items() if issubclass(base, contract))
    with pytest.raises(PluginError, match=f"^{message}") as caught:
        check(broken(base, **members))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("check", CHECKS.values())
def test_another_object_is_one_line(check: Callable[[Any], None]) -> None:
    with pytest.raises(PluginError, match=r"^5 is no \w+; derive its class from \w+$"):
        check(5)


def test_every_built_in_plugin_declares_itself_well() -> None:
    for registry in installed().registries():
        for cls in registry.values():
            CHECKS[registry.contract](cls())


@pytest.mark.parametrize(
    "change",
    [
        {"metric": {"kl": broken(Kl, label=5)}},
        {"compressor": {"magnitude": broken(Magnitude, sequential=5)}},
        {"schedule": broken(Uniform, repeats=5)},
        {"recovery": broken(LeastSquares, name=5)},
    ],
)
def test_a_run_checks_them_before_it_loads_a_model(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compressor.commands.setup.load_model", None)
    with pytest.raises(PluginError, match="is 5; give a value of type"):
        run(tmp_path / "run", replace(make_settings(Uniform()), **change))


@pytest.mark.parametrize(
    ("text", "line"), [(" \n  ", ""), ("", ""), (5, ""), (None, ""), ("\n  One.\n\n  Two.", "One."), ("One. ", "One.")]
)
def test_the_first_line_of_a_docstring(text: object, line: str) -> None:
    cls = type("Documented", (), {"__doc__": text})
    assert summarize_class(cls) == line


def test_a_metric_without_a_docstring_has_a_record() -> None:
    assert MetricRecord.of(broken(Kl, __doc__="  ")) == MetricRecord("KL", "", "nats per token", "lower")
