"""What single treatments do is asked once: another budget of the same model and data makes no new trials of them."""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
from numpy.typing import NDArray

from compressor.artifacts.run_record import Record
from compressor.commands.run import execute
from compressor.contracts import Estimate, EstimateRequest
from compressor.errors import ConfigError
from compressor.plugins import installed
from compressor.search.estimating import Estimator
from compressor.sensitivity import cache
from compressor.sensitivity.cache import Known, from_content, remove_oldest, to_content
from compressor.sensitivity.cache_limit import read_limit
from compressor.settings import (
    CalibrationWeights,
    ComponentSettings,
    DataSettings,
    DType,
    ExportSettings,
    ModelSettings,
    Settings,
    SweepMode,
    SweepSettings,
    TrackingSettings,
)
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.margin_noise import MarginNoise
from compressor_plugins.metrics.perplexity import Perplexity
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.gptq import Gptq
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.budget import round
from compressor_plugins.schedules.budget.budget import Budget, EstimateBy, Granularity
from tests.support.families import save_checkpoint
from tests.support.slow import rarely, rarely_cases

MEASURED = EstimateBy.measured


@dataclass
class Runs:
    """Runs one after the other that share a cache, and the requests of each that the model had to answer."""

    folder: Path
    base: Path
    patch: pytest.MonkeyPatch
    asked: list[EstimateRequest] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        def record(method: Callable[..., Any]) -> Callable[..., Any]:
            def asking(estimator: Estimator, request: EstimateRequest) -> Any:  # noqa: ANN401 - as the method
                self.asked.append(request)
                return method(estimator, request)

            return asking

        self.patch.setattr(Estimator, "_predict", record(Estimator._predict))
        self.patch.setattr(Estimator, "_measure", record(Estimator._measure))
        self.patch.setenv("COMPRESSOR_CACHE", str(self.folder / "cache"))
        self.patch.setenv("COMPRESSOR_CACHE_BYTES", str(1 << 24))

    @property
    def files(self) -> list[Path]:
        return sorted((self.folder / "cache" / "estimates").glob("*"))

    def run(self, name: str, schedule: Budget, *compressors: Any, **changes: Any) -> Record:  # noqa: ANN401 - any
        self.asked.clear()
        (self.folder / name).mkdir()
        settings = Settings(
            metric=changes.pop("metric", {"kl": Kl(), "fdtm": Fdtm()}),
            compressor={compressor.name: compressor for compressor in compressors},
            schedule=schedule,
            tracking=TrackingSettings(backend="none"),
            export=ExportSettings(format="dense", verify=False),
            model=dataclasses.replace(ModelSettings(path=str(self.base)), **changes.pop("model", {})),
            data=dataclasses.replace(
                DataSettings(prefixes=4, proof_prefixes=2, prefix_tokens=4, continuation_tokens=6),
                **changes.pop("data", {}),
            ),
            **changes,
        )
        return execute(settings, installed(), self.folder / name, {}, "compressor run")

    def read(self, name: str) -> tuple[bytes, bytes]:
        """What a run decided, and the scores of its result."""
        return (self.folder / name / "plan.json").read_bytes(), (self.folder / name / "sequences.jsonl").read_bytes()


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    return Runs(tmp_path, save_checkpoint("llama", tmp_path / "base", with_tokenizer=True), monkeypatch)


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a checkpoint, a first run and its cache."""
    folder = tmp_path_factory.mktemp("remembered")
    with pytest.MonkeyPatch.context() as patch:
        runs = Runs(folder, save_checkpoint("llama", folder / "base", with_tokenizer=True), patch)
        runs.run("first", Budget([0.6], corrections=0), Int8(), Int4(group=16))
        assert len(runs.asked) == len(runs.files) == 1
    return folder


@pytest.fixture
def after_first(remembered: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Runs:
    """Runs after the one that is remembered, on copies of its checkpoint and of its cache."""
    shutil.copytree(remembered, tmp_path, dirs_exist_ok=True)
    return Runs(tmp_path, tmp_path / "base", monkeypatch)


CASES: dict[str, tuple[dict[str, Any], list[Any]]] = {
    "one pass": ({}, [Magnitude()]),
    "measured": ({"estimate": MEASURED, "objective": "fdtm"}, [Int8(), Int4(group=16)]),
    "rows": ({"granularity": Granularity.row}, [Magnitude()]),
    "mixed": ({}, [Magnitude(), Int8()]),
    "calibrated": ({}, [Gptq(bits=[3, 4, 8], group=16)]),
}


@pytest.mark.parametrize(
    ("case", "corrections"),
    [
        ("one pass", 0),
        *rarely_cases([("measured", 2)]),
        *rarely_cases((case, 2) for case in ("one pass", "rows", "mixed", "calibrated")),
        *rarely_cases((case, 0) for case in ("measured", "rows", "mixed", "calibrated")),
    ],
)
def test_another_budget_asks_nothing_of_single_components(case: str, corrections: int, runs: Runs) -> None:
    options, compressors = CASES[case]
    first, second = (Budget([target], corrections=corrections, **options) for target in (0.45, 0.55))
    runs.run("first", first, *compressors)
    assert len([request for request in runs.asked if not request.at]) == len(runs.files) == 1
    without = runs.run("without", second, *compressors, sweep=SweepSettings(cache=False))
    asked = [request for request in runs.asked if not request.at]
    assert len(asked) == 1 and not any("cache" in note for note in without.notes)
    record = runs.run("second", second, *compressors)
    assert all(request.at for request in runs.asked)
    assert runs.read("second") == runs.read("without")
    step, other = record.rounds[0], without.rounds[0]
    assert (step.scores, step.additivity, step.amount) == (other.scores, other.additivity, other.amount)
    trials = 1 + sum(map(len, asked[0].options.values())) if asked[0].measured else 0
    assert other.trials - step.trials == trials
    assert other.passes - step.passes == pytest.approx(trials or 4)
    if not corrections and case != "calibrated":  # calibration data is gathered for the treatments themselves
        assert step.trials == 0 and step.passes == 0
    (note,) = [note for note in record.notes if "came from the cache" in note]
    assert note.startswith(f"The estimates of {sum(map(len, asked[0].options.values()))} options")
    assert "came from the cache" in (runs.folder / "second" / "report.html").read_text()


def test_blocks_of_prefixes_are_recalled_with_where_they_start(runs: Runs) -> None:
    runs.patch.setattr(round, "FIRST_PREFIXES", 2)
    runs.patch.setattr(round, "SETTLED", -1.0)
    schedule = Budget(bits=6.0, objective="divergent_perplexity", estimate=MEASURED, corrections=0)
    ratios = []
    for name in ("first", "again"):
        metric = {"divergent_perplexity": DivergentPerplexity()}
        record = runs.run(name, schedule, Int8(), Int4(group=16), metric=metric, data={"prefixes": 6})
        ratios.append(record.rounds[0].additivity)
        assert len(runs.asked) == (3 if name == "first" else 0) and len(runs.files) == 3
    assert ratios[0] is not None and ratios[0] == ratios[1]


def test_only_the_base_is_remembered(runs: Runs) -> None:
    """In a second round a model is no more the base, and a correction is of its own plan."""
    runs.run("first", Budget([0.3, 0.5], corrections=1), Magnitude())
    assert len(runs.files) == 1
    record = runs.run("second", Budget([0.3, 0.5], corrections=1), Magnitude())
    assert len(runs.files) == 1 and any(not request.at for request in runs.asked)
    assert record.rounds[0].passes < record.rounds[1].passes


def change_weights(runs: Runs) -> dict[str, Any]:
    path = runs.base / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    tensors["model.norm.weight"][0] *= 1.5
    safetensors.torch.save_file(tensors, path, {"format": "pt"})
    return {}


def change_code(runs: Runs) -> dict[str, Any]:
    runs.patch.setattr(cache, "hash_sources", lambda modules: "another")
    return {}


def change_version(runs: Runs) -> dict[str, Any]:
    runs.patch.setattr(cache, "read_version", lambda package: "9.9")
    return {}


CHANGES: dict[str, Any] = {
    "weights": change_weights,
    "code": change_code,
    "version": change_version,
    "compressor's option": {"compressors": [Int8(), Int4(group=8)]},
    "fewer compressors": {"compressors": [Int4(group=16)]},
    "seed": {"seed": 1},
    "data seed": {"data": {"seed": 1}},
    "prefixes": {"data": {"prefixes": 5}},
    "length": {"data": {"continuation_tokens": 7}},
    "precision": {"model": {"dtype": DType.bfloat16}},
    "streamed": {"model": {"stream": True, "dtype": DType.auto}},
    "components": {"components": ComponentSettings(exclude=["down_proj"])},
    "objective": {"schedule": Budget([0.6], corrections=0, objective="margin_noise")},
    "objective's option": {"metric": {"kl": Kl(), "margin_noise": MarginNoise(closeness=0.5)},
                           "schedule": Budget([0.6], corrections=0, objective="margin_noise")},
    "measured": {"schedule": Budget([0.6], corrections=0, estimate=MEASURED)},
    "weights of tokens": {"data": {"calibration": CalibrationWeights.margins}},
    "plain": {"sweep": SweepSettings(mode=SweepMode.plain)},
    "batch": {"sweep": SweepSettings(batch=2)},
}  # fmt: skip


OFTEN = (
    "weights",
    "code",
    "compressor's option",
    "components",
    "objective's option",
)


@pytest.mark.parametrize("change", [*OFTEN, *rarely(change for change in CHANGES if change not in OFTEN)])
def test_whatever_is_another_ingredient_is_asked_anew(change: str, after_first: Runs) -> None:
    runs, first = after_first, Budget([0.6], corrections=0)
    if change == "objective's option":
        first = Budget([0.6], corrections=0, objective="margin_noise")
        runs.run("noise", first, Int8(), Int4(group=16))
    known = len(runs.files)
    changes = CHANGES[change](runs) if callable(CHANGES[change]) else dict(CHANGES[change])
    schedule, compressors = changes.pop("schedule", first), changes.pop("compressors", [Int8(), Int4(group=16)])
    record = runs.run("second", schedule, *compressors, **changes)
    assert len(runs.asked) == 1 and len(runs.files) == known + 1
    assert not any("cache" in note for note in record.notes)


def test_another_text_is_asked_anew(runs: Runs) -> None:
    text, schedule = runs.folder / "text.txt", Budget([0.6], corrections=0, objective="perplexity", estimate=MEASURED)
    for number, words in enumerate(("one two three four five " * 9, "one two three four nine " * 9)):
        text.write_text(words)
        metric = {"perplexity": Perplexity(path=str(text), window=16, stride=8)}
        runs.run(f"first {number}", schedule, Int8(), Int4(group=16), metric=metric)
        assert len(runs.asked) == 1 and len(runs.files) == number + 1
        runs.run(f"second {number}", schedule, Int8(), Int4(group=16), metric=metric)
        assert not runs.asked


def test_the_same_again_hits(after_first: Runs) -> None:
    """What does not change an answer does not count: the order of compressors, other metrics, proof prefixes, paths."""
    after_first.run(
        "second", Budget(bits=7.0, corrections=0), Int4(group=16), Int8(), metric={"kl": Kl()},
        data={"proof_prefixes": 3},
    )  # fmt: skip
    assert not after_first.asked and len(after_first.files) == 1


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_a_file_that_cannot_be_read_is_made_anew(
    damage: bytes | None, after_first: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    runs, schedule = after_first, Budget([0.6], corrections=0)
    (path,) = runs.files
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] if damage is None else damage)
    with caplog.at_level(logging.WARNING):
        runs.run("second", schedule, Int8(), Int4(group=16))
    assert len(runs.asked) == 1 and "is damaged and is dropped" in caplog.text
    arrays, again = (safetensors.numpy.load(found) for found in (content, path.read_bytes()))
    assert arrays.keys() == again.keys() and all(np.array_equal(arrays[name], again[name]) for name in arrays)
    assert runs.read("first") == runs.read("second")


def test_where_nothing_can_be_written_a_run_goes_on(runs: Runs, caplog: pytest.LogCaptureFixture) -> None:
    (runs.folder / "cache").mkdir()
    (runs.folder / "cache" / "estimates").write_text("a file")
    with caplog.at_level(logging.WARNING):
        runs.run("first", Budget([0.6], corrections=0), Int8(), Int4(group=16))
    assert "is not cached: cannot write" in caplog.text


def test_what_was_not_read_for_longest_goes(tmp_path: Path) -> None:
    for age, name in enumerate("abcd"):
        path = tmp_path / f"{64 * name}.safetensors"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    remove_oldest(tmp_path, 400)
    assert len(list(tmp_path.iterdir())) == 4
    remove_oldest(tmp_path, 299)
    assert sorted(path.stem[0] for path in tmp_path.iterdir()) == ["a", "b"]


def test_files_of_the_user_stay_in_the_folder_of_the_cache(tmp_path: Path) -> None:
    model, cache = tmp_path / "model.safetensors", tmp_path / "estimates"
    model.write_bytes(bytes(1000))
    cache.mkdir()
    (cache / f"{64 * 'a'}.safetensors").symlink_to(model)
    names = ["model.safetensors", f"{63 * 'a'}.safetensors", ".notes.tmp", f"{64 * 'A'}.safetensors"]
    for name in names:
        (cache / name).write_bytes(bytes(1000))
        os.utime(cache / name, (1000, 1000))
    (cache / f"{64 * 'b'}.safetensors").write_bytes(bytes(1000))
    remove_oldest(cache, 0)
    assert {path.name for path in cache.iterdir()} == {*names, f"{64 * 'a'}.safetensors"}
    assert model.exists()


def test_the_limit_holds_over_runs_and_a_read_file_stays(runs: Runs) -> None:
    runs.run("first", Budget([0.6], corrections=0), Int8(), Int4(group=16))
    (first,) = runs.files
    runs.patch.setenv("COMPRESSOR_CACHE_BYTES", str(int(2.5 * first.stat().st_size)))
    runs.run("second", Budget([0.6], corrections=0), Int8(), Int4(group=16), seed=1)
    (second,) = set(runs.files) - {first}
    os.utime(first, (10, 10))
    os.utime(second, (20, 20))
    runs.run("again", Budget([0.7], corrections=0), Int8(), Int4(group=16))  # reads the first
    runs.run("third", Budget([0.6], corrections=0), Int8(), Int4(group=16), seed=2)
    assert first in runs.files and second not in runs.files and len(runs.files) == 2
    runs.patch.setenv("COMPRESSOR_CACHE_BYTES", "100")
    runs.run("large", Budget([0.6], corrections=0), Int8(), Int4(group=16), seed=3)
    assert first in runs.files  # one that never fits does not drive out the others


@pytest.mark.parametrize("limit", ["0", "-1", "1e9", "much"])
def test_the_limit_is_a_number_and_nothing_turns_it_off(limit: str, runs: Runs) -> None:
    runs.patch.setenv("COMPRESSOR_CACHE_BYTES", limit)
    if limit != "0":
        with pytest.raises(ConfigError, match=f"`COMPRESSOR_CACHE_BYTES` must be a number of bytes, got '{limit}'; 0 "):
            runs.run("first", Budget([0.6], corrections=0), Int8())
        return
    runs.run("first", Budget([0.4], corrections=0), Int8())
    assert not runs.files


@pytest.mark.parametrize("level", [None, np.array([0.1 + 0.2, -1e-300, -0.0]), np.arange(6.0).reshape(3, 2)[:, 1]])
def test_answers_come_back_bit_for_bit(level: NDArray[np.float64] | None) -> None:
    generator = np.random.default_rng(0)
    changes, line = generator.standard_normal((2, 3, 5))
    known = Known(
        {
            "a": Estimate(changes, generator.standard_normal((7, 5)), True, changes.T.copy().T, line),
            "b": Estimate(np.array([[np.nextafter(1, 2), -0.0, 1e-310]]), reached=False),
        },
        level,
    )
    found = from_content(to_content(known), ["a", "b"])
    assert found is not None
    assert (found.level is None) == (level is None)
    assert found.level is None or level is None or found.level.tobytes() == level.tobytes()
    for name, estimate in known.estimates.items():
        for one, other in zip(dataclasses.astuple(estimate), dataclasses.astuple(found.estimates[name]), strict=True):
            if isinstance(one, np.ndarray):
                assert one.tobytes() == other.tobytes() and one.shape == other.shape and other.dtype == np.float64
            else:
                assert one is other
    assert from_content(to_content(known), ["a"]) is None


def test_the_cache_of_estimates_is_off_in_tests() -> None:
    assert os.environ["COMPRESSOR_CACHE_BYTES"] == "0" and read_limit() == 0
