"""Plans become weights: options resolved, mistakes named, plugins kept in check."""

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor.compression.apply import Treatments, make_replacement
from compressor.compression.checked_weight import is_finite
from compressor.contracts import Component, CompressedWeight, Compressor, Context, Offer, QuantizedMatrix, Treatment
from compressor.errors import ConfigError, PlanError, PluginError
from compressor.models import Model, load_model
from compressor.models.input_transforms import transform_inputs
from compressor.plugins import installed
from compressor.settings import ModelSettings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.pruning.selection import Scope
from compressor_plugins.quantization.int8 import Int8
from tests.support.broken_plugins import broken
from tests.support.families import save_checkpoint


@pytest.fixture
def model(tmp_path: Path) -> Model:
    save_checkpoint("llama", tmp_path)
    return load_model(ModelSettings(path=str(tmp_path)))


def make_treatments(*compressors: Compressor) -> Treatments:
    return Treatments({compressor.name: compressor for compressor in compressors}, installed().compressors, seed=3)


def test_empty_options_mean_as_configured(model: Model) -> None:
    name = next(iter(model.components))
    by_row = make_treatments(Magnitude(scope=Scope.row)).compress(model, {name: Treatment("magnitude", 0.5)})
    zeros = (by_row[name].dense() == 0).sum(1)
    assert (zeros == model.components[name].shape[1] // 2).all()


def test_options_of_a_plan_win_and_unconfigured_compressors_work(model: Model) -> None:
    name = next(iter(model.components))
    treatments = make_treatments(Int8())
    plan = {name: Treatment("magnitude", 0.5, {"scope": "row"})}
    zeros = (treatments.compress(model, plan)[name].dense() == 0).sum(1)
    assert (zeros == model.components[name].shape[1] // 2).all()
    assert treatments.fill_options(plan)[name].options == {"scope": "row", "pattern": ""}


def test_filled_options_mean_the_same(model: Model) -> None:
    name = next(iter(model.components))
    treatments = make_treatments(Magnitude(scope=Scope.row))
    plan = {name: Treatment("magnitude", 0.3)}
    elsewhere = make_treatments(Magnitude())
    filled = treatments.fill_options(plan)
    assert torch.equal(treatments.compress(model, plan)[name].dense(), elsewhere.compress(model, filled)[name].dense())


@pytest.mark.parametrize(
    ("name", "treatment", "message"),
    [
        ("nowhere", Treatment("magnitude", 0.5), "unknown component `nowhere`"),
        (None, Treatment("magnitud", 0.5), "unknown compressor `magnitud`; did you mean `magnitude`"),
        (None, Treatment("magnitude", 0.5, {"scop": 1}), "unknown option `scop` of compressor `magnitude`; did"),
        (None, Treatment("magnitude", 0.5, {"scope": "x"}), "options of compressor `magnitude` are not valid"),
        (None, Treatment("int8", 0.1), "`int8` offers the amounts"),
    ],
)
def test_mistakes_in_plans(model: Model, name: str | None, treatment: Treatment, message: str) -> None:
    with pytest.raises((PlanError, ConfigError), match=message):
        make_treatments(Int8(), Magnitude()).compress(model, {name or next(iter(model.components)): treatment})


@pytest.mark.parametrize("amount", [-0.1, 1.1, float("nan")])
def test_amounts_out_of_range(amount: float) -> None:
    with pytest.raises(PlanError, match=r"must be in \[0, 1\]"):
        Treatment("magnitude", amount)


@dataclass(frozen=True)
class Fixed(CompressedWeight):
    """Whatever value it is given."""

    value: torch.Tensor
    bits = 1

    def dense(self) -> torch.Tensor:
        return self.value


@dataclass
class Wild(Compressor):
    """Breaks its contract in the way that `how` says."""

    how: str = "raises"
    name = "wild"

    def offer(self, component: Component) -> Offer:
        return Offer()

    def compress(self, weight: torch.Tensor, amount: float, context: Context) -> CompressedWeight:
        if self.how == "raises":
            raise KeyError("lost")
        return Fixed(weight[:1] if self.how == "shape" else weight * float("inf"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "KeyError: 'lost'"),
        ("shape", "gave a dense value that is"),
        ("inf", "gave a dense value"),
    ],
)
def test_a_broken_compressor_is_named_with_the_component(model: Model, how: str, message: str) -> None:
    name = next(iter(model.components))
    with pytest.raises(PluginError, match=rf"^compressor `wild` of tests.*{message}"):
        make_treatments(Wild(how)).compress(model, {name: Treatment("wild", 0.5)})


@dataclass(frozen=True)
class Weight(CompressedWeight):
    """Takes `size` bits, whatever it is."""

    weight: torch.Tensor
    size: object = 8

    def dense(self) -> torch.Tensor:
        return self.weight

    @property
    def bits(self) -> int:
        return self.size  # type: ignore[return-value] # some of them are wrong


class Transformed(Weight):
    @property
    def input_transform(self) -> Any:  # noqa: ANN401
        return 5


BROKEN_COMPRESSORS: dict[str, tuple[dict[str, Any], str]] = {
    "no weight": (
        {"compress": lambda self, w, a, c: w},
        r"gave a value of type Tensor as the compressed weight of model.*; give a CompressedWeight, such as a Quanti",
    ),
    "None": ({"compress": lambda self, w, a, c: None}, r"gave None as the compressed weight of .*; give a Compressed"),
    "a tuple": ({"compress": lambda self, w, a, c: (w, 8)}, "gave a value of type tuple as the compressed weight of"),
    "an array": ({"compress": lambda self, w, a, c: w.numpy()}, "gave a value of type ndarray as the compressed"),
    "nothing each": ({"compress_each": lambda self, w, a, c: [None]}, "gave None as the compressed weight of"),
    "no level": (
        {"offer": lambda self, component: Offer(levels=())},
        r"\(\) as `levels` for .*; give at least one, or",
    ),
    "levels and a range": (
        {"offer": lambda self, component: Offer(levels=(0.5,), high=0.5)},
        r"gave the levels \(0\.5,\) and the range \(0\.0, 0\.5\) for .*; give one of the two",
    ),
    "a level that is a bool": ({"offer": lambda self, component: Offer(levels=(True,))}, r"gave amounts \(True,\) for"),
    "rows": (
        {"offer": lambda self, component: Offer(by_row=True)},
        "`by_row` True for .*; its class has no `compress_",
    ),
    "negative bits": ({"compress": lambda self, w, a, c: Weight(w, -5)}, "gave -5 as the `bits`"),
    "bits that are no number": ({"compress": lambda self, w, a, c: Weight(w, float("nan"))}, "gave nan as the `bits`"),
    "too many bits": ({"compress": lambda self, w, a, c: Weight(w, 10**30)}, f"gave {10**30} as the `bits`"),
    "sparse": ({"compress": lambda self, w, a, c: Weight(w.to_sparse())}, "sparse_coo on cpu"),
    "another device": ({"compress": lambda self, w, a, c: Weight(w.to("meta"))}, "on meta for"),
    "changes its weight": ({"compress": lambda self, w, a, c: Weight(w.zero_())}, "changed the weight or the calib"),
    "too few": ({"compress_each": lambda self, w, a, c: []}, r"gave 0 results for 1 amounts"),
    "too many": ({"compress_each": lambda self, w, a, c: [Weight(w)] * 2}, "gave more results than the 1 amounts"),
    "no results": ({"compress_each": lambda self, w, a, c: None}, "`compress_each` of .* gave NoneType"),
    "no offer": ({"offer": lambda self, component: None}, "`offer` of .* gave NoneType"),
    "offer out of range": ({"offer": lambda self, component: Offer(high=2.0)}, r"gave amounts \(0\.0, 2\.0\)"),
    "exits": ({"compress": lambda self, w, a, c: sys.exit(0)}, "failed in `compress` on .*: SystemExit: 0"),
    "amounts fall": ({"offer": lambda self, component: Offer(low=0.5, high=0.25)}, r"\(0\.5, 0\.25\) for "),
    "amounts twice": ({"offer": lambda self, component: Offer(levels=(0.5, 0.5))}, "they must be distinct, or a range"),
    "amounts of NaN": ({"offer": lambda self, component: Offer(levels=(float("nan"),))}, r"gave amounts \(nan,\)"),
    "amounts in a list": ({"offer": lambda self, component: Offer(levels=[0.5])}, "give a tuple and a bool"),  # type: ignore[arg-type]
    "amounts of texts": ({"offer": lambda self, component: Offer(high="x")}, r"gave amounts \(0\.0, 'x'\)"),  # type: ignore[arg-type]
    "transform": (
        {"compress": lambda self, w, a, c: Transformed(w)},
        "gave 5 as `input_transform` of",
    ),
    "needs a list": ({"needs": ["hessian"]}, "`needs` of .* is ..hessian.*; give a frozenset of names"),
}


@pytest.mark.parametrize("case", BROKEN_COMPRESSORS)
def test_what_a_compressor_gives_is_checked(model: Model, case: str) -> None:
    members, message = BROKEN_COMPRESSORS[case]
    name, plugin = next(iter(model.components)), broken(Wild, **members)
    treatments = make_treatments(plugin)
    with pytest.raises(PluginError, match=message) as caught:
        treatments.find_needs(["wild"])
        treatments.compress(model, {name: Treatment("wild", 0.5)})
    assert str(caught.value).count("wild` of ") == 1 and "\n" not in str(caught.value)


@dataclass
class Turning:
    """A member that gives something else, or fails, when it is read once more."""

    first: Any
    then: Any
    reads: int = 0

    def __call__(self, *_: object) -> Any:  # noqa: ANN401
        self.reads += 1
        found = self.first if self.reads == 1 else self.then
        if isinstance(found, BaseException):
            raise found
        return found


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (torch.zeros(2), r"gave a dense value that is \(2,\) torch.float32 for"),
        (None, "gave a dense value that is NoneType for"),
        (KeyError("lost"), "failed in `dense` on .*: KeyError: 'lost'"),
    ],
)
def test_a_dense_value_that_is_read_again_is_checked_again(model: Model, then: object, message: str) -> None:
    name = next(iter(model.components))
    dense = Turning(model.read(name), then)
    weight = type("Again", (Weight,), {"dense": lambda self: dense(), "__module__": __name__})
    plugin = broken(Wild, compress=lambda self, w, a, c: weight(w))
    (compressed,) = make_treatments(plugin).compress(model, {name: Treatment("wild", 0.5)}).values()
    with pytest.raises(PluginError, match=rf"^compressor `wild` of .*{message}"):
        make_replacement(compressed)


@pytest.mark.parametrize("member", ["bits", "quantized", "input_transform"])
def test_what_else_a_weight_has_is_read_once(model: Model, member: str) -> None:
    name = next(iter(model.components))
    read = Turning(8 if member == "bits" else None, KeyError("lost"))
    weight = type("Again", (Weight,), {member: property(read), "__module__": __name__})
    plugin = broken(Wild, compress=lambda self, w, a, c: weight(w))
    (compressed,) = make_treatments(plugin).compress(model, {name: Treatment("wild", 0.5)}).values()
    assert [getattr(compressed, member) for _ in range(2)] == [read.first] * 2
    assert read.reads == 1


def test_an_input_transform_that_fails_later_names_its_compressor(model: Model) -> None:
    class Given(Weight):
        @property
        def input_transform(self) -> Any:  # noqa: ANN401
            return lambda inputs: inputs.missing

    name = next(iter(model.components))
    plugin = broken(Wild, compress=lambda self, w, a, c: Given(w), transforms_inputs=True)
    (compressed,) = make_treatments(plugin).compress(model, {name: Treatment("wild", 0.5)}).values()
    transform = make_replacement(compressed).input_transform
    assert transform is not None
    with pytest.raises(PluginError, match=r"^compressor `wild` of .* failed in `input_transform` on .*: AttributeErr"):
        transform_inputs(torch.ones(1, 2), transform, name)


HALVES = "as many halves as weights"
BENT_MATRICES: dict[str, tuple[dict[str, Any], str]] = {
    "no bits": ({"integer_bits": 0}, "`integer_bits` is 0; integers have 1 to 8 bits"),
    "many bits": ({"integer_bits": 64}, "`integer_bits` is 64"),
    "bits of NaN": ({"integer_bits": float("nan")}, "`integer_bits` is nan"),
    "group": ({"group": -1}, "`group` is -1; give a number of weights, or 0"),
    "integers of another shape": (
        {"integers": torch.zeros(2, 2, dtype=torch.int8)},
        r"`integers` are \(2, 2\) torch.int8",
    ),
    "no integers": ({"integers": None}, "`integers` are of type NoneType"),
    "floats": ({"integers": HALVES}, "`integers` are torch.float32; give int8"),
    "scales of another shape": ({"scales": torch.ones(3, 3)}, r"`scales` are \(3, 3\) torch.float32; floats"),
    "whole scales": (
        {"scales": torch.ones(1, 1, dtype=torch.int8)},
        r"`scales` are \(1, 1\) torch.int8; floats",
    ),
    "zeros of another shape": ({"zeros": torch.zeros(3, 3)}, r"`zeros` are \(3, 3\)"),
    "rounding": ({"input_rounding": "int8"}, "`input_rounding` is 'int8'; give a TokenRounding or None"),
}


@pytest.mark.parametrize("case", BENT_MATRICES)
def test_a_quantized_matrix_of_another_form_is_one_line(model: Model, case: str) -> None:
    fields, message = BENT_MATRICES[case]

    class Bent(Weight):
        @property
        def quantized(self) -> QuantizedMatrix:
            bent = fields
            if bent.get("integers") is HALVES:
                bent = {"integers": torch.full(self.weight.shape, 0.5)}
            whole = QuantizedMatrix(self.weight.char(), torch.ones(len(self.weight), 1), 8, 0, self.weight.dtype)
            return dataclasses.replace(whole, **bent)

    plugin = broken(Wild, compress=lambda self, w, a, c: Bent(w))
    with pytest.raises(PluginError, match=f"gave a `quantized` of .* whose {message}"):
        make_treatments(plugin).compress(model, {next(iter(model.components)): Treatment("wild", 0.5)})


@pytest.mark.parametrize(
    ("give", "message"),
    [
        (lambda weight: weight[:1], r"`importance` of compressor `wild` .* is \(1, "),
        (lambda weight: weight * float("nan"), "holds NaN"),
        (lambda weight: 5, "is int for"),
        (lambda weight: weight.to("meta"), "on meta for .*; real, dense numbers on cpu are needed"),
        (lambda weight: weight.to_sparse(), "sparse_coo, on cpu"),
        (lambda weight: weight.to(torch.complex64), "is torch.complex64"),
        (lambda weight: weight.zero_(), "changed the weight or the calibration data"),
    ],
)
def test_importance_is_checked(model: Model, give: Callable[[torch.Tensor], Any], message: str) -> None:
    plugin = broken(Wild, importance=lambda self, weight, context: give(weight))
    with pytest.raises(PluginError, match=message):
        make_treatments(plugin).count(model, "wild", [0.5])


def test_counts_are_exact_and_need_a_pruner(model: Model) -> None:
    thresholds = [0.0, 0.05, 0.1, 1e9]
    counts = make_treatments(Magnitude()).count(model, "magnitude", thresholds)
    for name, row in counts.items():
        assert row == [int((model.read(name).abs() <= t).sum()) for t in thresholds]
    with pytest.raises(ConfigError, match="`int8` does not rank single weights"):
        make_treatments(Int8()).count(model, "int8", thresholds)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_finite_is_every_element(dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    assert is_finite(torch.tensor([largest, largest, -1.0], dtype=dtype))  # the sum is not
    for bad in ([torch.inf, 1.0], [torch.inf, -torch.inf], [1.0, torch.nan], [-torch.inf, largest]):
        assert not is_finite(torch.tensor(bad, dtype=dtype))
