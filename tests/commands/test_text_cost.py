"""What texts take is told before they are made, and refused where there is no memory for them."""

from dataclasses import replace
from pathlib import Path

import pytest

from compressor.commands import cost, text_cost
from compressor.errors import CannotFit
from compressor.models import Model
from compressor.progress import Silent
from compressor.resources import Memory
from compressor.settings import Settings
from compressor_plugins.recovery.finetune import Finetune
from compressor_plugins.schedules.uniform import Uniform
from tests.support.forecasts import make_settings as make_forecast_settings
from tests.support.forecasts import run as make_forecast
from tests.support.runs import DATA, make_settings, run

MANY = 2**31 - 1
SMALL = Memory(1 << 30, 1 << 30, 8 << 30)


def settings_of(recovery: Finetune | None = None, **data: int | None) -> Settings:
    return make_settings(Uniform([0.3]), data=replace(DATA, **data), recovery=recovery)


CASES = {
    "recovery.windows": settings_of(Finetune(windows=MANY, tokens=8)),
    "data.prefixes": settings_of(prefixes=MANY),
    "data.proof_prefixes": settings_of(proof_prefixes=MANY),
}


@pytest.mark.parametrize("key", CASES)
def test_a_count_for_which_there_is_no_memory_is_refused_before_any_text_is_made(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_cost, "read_host_memory", lambda: SMALL)
    monkeypatch.setattr(Model, "decode", lambda *arguments: pytest.fail("a text was made"))
    with pytest.raises(CannotFit, match=rf"^`{key}={MANY}` needs .* of memory for its texts, .*; lower it to at most "):
        run(tmp_path / "run", CASES[key])
    assert [*(tmp_path / "run").iterdir()] == []


def test_the_advice_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cost, "read_host_memory", lambda: Memory(1000, 1000, 500_000))
    with pytest.raises(CannotFit) as refused:
        run(tmp_path / "run", CASES["recovery.windows"])
    most = int(str(refused.value).rpartition(" ")[2])
    assert most > 1000
    recovery = Finetune(windows=most + 1, tokens=8, steps=1, released=0, batch=2)
    with pytest.raises(CannotFit):
        run(tmp_path / "more", settings_of(recovery))
    assert run(tmp_path / "fits", settings_of(replace(recovery, windows=most))).status == "done"


def test_a_forecast_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_cost, "read_host_memory", lambda: SMALL)
    settings = make_forecast_settings()
    with pytest.raises(CannotFit, match=rf"^`data\.prefixes={MANY}` needs"):
        make_forecast(tmp_path, replace(settings, data=replace(settings.data, prefixes=MANY)))


def test_a_batch_for_which_there_is_no_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "read_memory", lambda device: SMALL)
    with pytest.raises(CannotFit, match=r"the run needs .* of memory, and can have "):
        run(tmp_path, settings_of(Finetune(windows=16, tokens=8, batch=MANY)))


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


@pytest.mark.parametrize(("seconds", "is_told"), [(1e-6, False), (0.01, True)])
def test_a_long_time_is_told(seconds: float, is_told: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, key = Heard(), "recovery.windows"
    monkeypatch.setattr(text_cost, "try_token", lambda model: seconds)
    text_cost.TextCost({key: 1000}, {key: 100_000}, {key: 1_600_000}).tell(None, heard)  # type: ignore[arg-type]
    told = "expected cost of the texts: 100,000 tokens that the base writes, at most 16 min 40 s, 1.6 MB of memory"
    assert heard.lines == ([told] if is_told else [])
