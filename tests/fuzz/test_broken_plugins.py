"""Plugins that break one promise, by machine, in whole runs of a tiny model.

The outcome is one line that names the plugin, a model as it was, and no part of a result; or a run that succeeds.
"""

from __future__ import annotations

import dataclasses
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from compressor.artifacts.run_status import read_status
from compressor.commands import setup
from compressor.commands.run import execute
from compressor.commands.stopping import interruptible
from compressor.contracts.guard import ORIGIN
from compressor.errors import CompressorError, ModelError
from compressor.models import Model, load_model
from compressor.plugins import Plugins, load_plugins
from compressor.registry import Entry
from compressor.settings import (
    ComponentSettings,
    DataSettings,
    ExportSettings,
    ModelSettings,
    Settings,
    SweepSettings,
    TrackingSettings,
)
from tests.support.breaches import (
    CHANGED,
    MEMBERS,
    RAISED,
    VALUES,
    FuzzedCompressor,
    FuzzedMetric,
    FuzzedSchedule,
    FuzzedTransform,
    FuzzedWeight,
    break_member,
)
from tests.support.slow import rarely
from tests.support.snapshots import is_unchanged, snapshot

DATA = DataSettings(prefixes=2, proof_prefixes=2, prefix_tokens=2, continuation_tokens=3)
COMPONENTS = ComponentSettings(include=[r"layers\.1\.(self_attn\.o_proj|mlp\.up_proj)"])
Classes = dict[type, type]
"""A whole class -> the one that is used in its place."""


class Bench:
    """Runs with a model that is loaded again only after a plan was kept."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.number = folder, itertools.count()
        self.model: Model | None = None
        self.plugins: Plugins = load_plugins()
        patch.setattr(setup, "load_model", lambda *_: self.open())

    def open(self) -> Model:
        self.model = self.model or load_model(ModelSettings(), COMPONENTS)
        return self.model

    def run(self, classes: Classes) -> str:
        """Run once; returns the error, empty if there is none."""
        folder = self.folder / str(next(self.number))
        folder.mkdir()
        before, metric, schedule = snapshot(self.open()), classes[FuzzedMetric](), classes[FuzzedSchedule]()
        compressor = type("Whole", (classes[FuzzedCompressor],), {
            "weight": classes[FuzzedWeight], "transform": classes[FuzzedTransform],
            "__module__": FuzzedCompressor.__module__,
        })  # fmt: skip
        compressor = dataclasses.dataclass(compressor)
        setattr(compressor, ORIGIN, "acme 1.0")
        self.plugins.compressors.entries["fuzzed_compressor"] = Entry(compressor, "acme", "1.0")
        made = Settings(
            metric={"fuzzed_metric": metric},
            compressor={"fuzzed_compressor": compressor()},
            schedule=schedule,
            data=DATA,
            components=COMPONENTS,
            sweep=SweepSettings(cache=False),
            tracking=TrackingSettings(backend="none"),
            export=ExportSettings(verify=False),
        )
        said = ""
        try:
            with interruptible():  # as from Python: a KeyboardInterrupt of a plugin is told from that of a signal
                execute(made, self.plugins, folder, {"seed": 0}, "compressor run")
        except CompressorError as error:
            said = str(error)
            self.check(error, folder)
        if schedule.was_kept or not said:
            self.model = None
        else:
            assert is_unchanged(self.open(), before), f"the model was changed: {said}"
            assert not self.open().input_transforms
        shutil.rmtree(folder)
        return said

    @staticmethod
    def check(error: CompressorError, folder: Path) -> None:
        said = str(error)
        assert said.isprintable() and len(said) < 4000, said
        is_named = "fuzzed" in said.lower()
        is_too_large = "more than the" in said  # a right request, that the whole model does not meet
        assert is_named or isinstance(error, ModelError) or is_too_large, said
        assert read_status(folder)["status"] == "failed"
        assert is_too_large or not (folder / "model").exists()
        assert not [path for path in folder.rglob("*") if "tmp" in path.name]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with pytest.MonkeyPatch.context() as patch:
        yield Bench(tmp_path_factory.mktemp("broken"), patch)


WHOLE: Classes = {cls: cls for cls in MEMBERS}


def test_whole_plugins_succeed(bench: Bench) -> None:
    assert bench.run(WHOLE) == ""


@st.composite
def broken_members(draw: st.DrawFn) -> tuple[str, Classes]:
    """A member, what becomes of it, and after how many calls."""
    cls = draw(st.sampled_from([*MEMBERS]))
    member, after = draw(st.sampled_from(MEMBERS[cls])), draw(st.sampled_from((0, 0, 1, 2, 5)))
    kind = draw(st.sampled_from(("raise", "value", "value", "change")))
    if not callable(getattr(cls, member)) and not isinstance(getattr(cls, member), property):
        kind = "value"  # an attribute is never called
    named: dict[str, Callable[..., Any]] = {"raise": RAISED, "value": VALUES, "change": CHANGED}[kind]  # type: ignore[assignment]
    breach = draw(st.sampled_from([*named]))
    change = named[breach] if kind == "change" else (lambda _: named[breach]())
    return f"{cls.__name__}.{member}: {kind} {breach} after {after}", {
        **WHOLE,
        cls: break_member(cls, member, change, after),
    }


@st.composite
def broken_requests(draw: st.DrawFn) -> tuple[str, Classes]:
    """A request with another value in one field."""
    number, place, value = draw(st.integers(0, 7)), draw(st.integers(0, 9)), draw(st.sampled_from([*VALUES]))

    class Fuzzed(FuzzedSchedule):
        def make_requests(self, problem: Any) -> Any:  # noqa: ANN401
            requests = super().make_requests(problem)
            names = [field.name for field in dataclasses.fields(requests[number])]  # type: ignore[arg-type]
            requests[number] = replace(requests[number], **{names[place % len(names)]: VALUES[value]()})  # type: ignore[type-var]
            return requests

    return f"request {number}, field {place}: {value}", {**WHOLE, FuzzedSchedule: dataclasses.dataclass(Fuzzed)}


@pytest.mark.parametrize("examples", [25, *rarely([50]), pytest.param(800, marks=pytest.mark.nightly)])
def test_a_broken_promise_is_one_line(examples: int, bench: Bench) -> None:
    @settings(max_examples=examples, deadline=None, database=None, derandomize=examples < 100, phases=[Phase.generate])
    @given(broken=broken_members() | broken_members() | broken_requests())
    def check(broken: tuple[str, Classes]) -> None:
        note(broken[0])
        bench.run(broken[1])

    check()
