"""What a registry takes, what it refuses, and what it says of names that it does not know."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pytest

from compressor.contracts import Better, KeepRequest, Metric, Problem, Reads, Schedule, Search
from compressor.errors import ConfigError, PluginError
from compressor.registry import Registry, build_options
from compressor_plugins.pruning.magnitude import Magnitude


@dataclass
class Lazy(Schedule):
    """Does nothing."""

    name = "lazy"
    count: int = 1

    def search(self, problem: Problem) -> Search:
        yield KeepRequest({})


def make_schedules() -> Registry[Schedule]:
    registry = Registry(Schedule)  # type: ignore[type-abstract]
    registry.add(Lazy, "here", "1.0")
    return registry


def make_child(decorate: Callable[[type], type] = dataclass, **members: object) -> type[Schedule]:
    """A class `Child` under Lazy with the given members; annotations by `__annotations__`."""
    child: type[Schedule] = decorate(type("Child", (Lazy,), {"name": "child", "__module__": __name__, **members}))
    return child


def test_what_fits_is_a_mapping() -> None:
    schedules = make_schedules()
    assert dict(schedules) == {"lazy": Lazy} and len(schedules) == 1
    assert "lazy" in schedules and "child" not in schedules and 1 not in schedules
    assert schedules.get("lazy") is Lazy
    assert (schedules.entries["lazy"].distribution, schedules.entries["lazy"].version) == ("here", "1.0")
    schedules.add(make_child(), "there", "2.0")
    assert list(schedules) == ["lazy", "child"]


def make_abstract() -> type:
    @dataclass
    class Abstract(Schedule):
        name = "abstract"

    return Abstract


def make_needy() -> type:
    @dataclass
    class Needy(Schedule):
        count: int
        name = "needy"

        def search(self, problem: Problem) -> Search:
            yield KeepRequest({})

    return Needy


SIMPLE = "; use simple types"
WRONG: dict[str, tuple[object, str]] = {
    "instance": (Lazy(), "Lazy(count=1) is not a subclass of Schedule; derive it from that"),
    "other contract": (int, "<class 'int'> is not a subclass of Schedule; derive it from that"),
    "no name": (make_child(name=None), ".Child lacks the field `name` (str); set it on the class"),
    "capital": (make_child(name="Lazy"), "schedule name `Lazy` must be lower case letters, digits and underscores"),
    "hyphen": (make_child(name="a-b"), "schedule name `a-b` must be lower case letters, digits and underscores"),
    "abstract": (make_abstract(), "Abstract lacks search; implement it"),
    "inherited fields only": (make_child(lambda cls: cls), ".Child is not a dataclass; put @dataclass on it"),
    "no default": (make_needy(), "field `count` of schedule `needy` has no default; give it one"),
    "literal": (
        make_child(kind="a", __annotations__={"kind": Literal["a", "b"]}),
        "the fields of {module}.Child cannot be options: Unexpected type annotation: Literal[a, b]" + SIMPLE,
    ),
    "complex": (make_child(z=1j, __annotations__={"z": complex}), "the fields of {module}.Child cannot be options: "),
    "unresolved": (make_child(z=1, __annotations__={"z": "NoSuchType"}), "cannot be options: name 'NoSuchType' is not"),
    "taken": (Lazy, "schedule `lazy` is already taken by here 1.0; choose another name"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_does_not_fit_is_told_in_one_line(what: str) -> None:
    schedules = make_schedules()
    cls, message = WRONG[what]
    with pytest.raises(PluginError) as caught:
        schedules.add(cls, "there", "2.0")  # type: ignore[arg-type]
    assert message.replace("{module}", __name__) in str(caught.value) and str(caught.value).isprintable()
    assert list(schedules) == ["lazy"]


def test_frozen_dataclasses_are_refused() -> None:
    @dataclass(frozen=True)
    class Frozen(Schedule):
        name = "frozen"

        def search(self, problem: Problem) -> Search:
            yield KeepRequest({})

    with pytest.raises(PluginError, match=r"Frozen is a frozen dataclass, whose options cannot be overridden; drop f"):
        make_schedules().add(Frozen, "there", "2.0")


@pytest.mark.parametrize(("attribute", "kind"), [("name", "str"), ("reads", "Reads"), ("better", "Better")])
def test_a_metric_says_what_it_reads_and_which_way_is_better(attribute: str, kind: str) -> None:
    members = {"name": "length", "reads": Reads.PREDICTED, "better": Better.LOWER, "sequence_values": lambda *_: None}
    metrics = Registry(Metric)  # type: ignore[type-abstract]
    metrics.add(dataclass(type("Length", (Metric,), members)), "here", "1")
    with pytest.raises(PluginError, match=rf"lacks the field `{attribute}` \({kind}\); set it on the class$"):
        metrics.add(dataclass(type("Length", (Metric,), members | {attribute: "?" if kind != "str" else 7})), "h", "1")


def test_a_wrong_name_suggests_near_ones_and_gives_all_hints() -> None:
    schedules = make_schedules()
    with pytest.raises(ConfigError, match=r"^unknown schedule `lasy`; did you mean `lazy`\?$"):
        schedules["lasy"]
    schedules.hints += [lambda: "one hint", lambda: "", lambda: "another"]
    with pytest.raises(ConfigError, match=r"^unknown schedule `beam`; known: lazy; one hint; another$"):
        schedules["beam"]
    with pytest.raises(ConfigError, match=r"^unknown metric `fdtm`; known: none$"):
        Registry(Metric)["fdtm"]  # type: ignore[type-abstract]


@pytest.mark.parametrize("text", ["${oc.env:HOME}", r"\${oc.env:HOME}", r"\\${oc.env:HOME}", "${nope}", "2:4", "${"])
def test_options_of_a_file_are_taken_as_they_are(text: str) -> None:
    assert build_options(Magnitude, {"pattern": text})["pattern"] == text
