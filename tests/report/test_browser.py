"""The pages in a real Chromium: wide and narrow, light and dark, by mouse, by touch and by keys."""

from itertools import product
from pathlib import Path

import pytest

from compressor.artifacts.forecast_record import (
    CheckForecast,
    ForecastRecord,
    MatrixForecast,
    OptionForecast,
    PointForecast,
)
from compressor.report.forecast_page import make_forecast_page
from compressor.report.run_page import make_page
from tests.support.browser import Browser, Tab
from tests.support.pages import make_score, make_sequences, variants
from tests.support.slow import rarely_cases

PHONE, DESK = 390, 1200
SHOWN = "[...document.querySelectorAll('.tip')].filter(tip => tip.offsetHeight > 20 && tip.offsetWidth > 100)"
"""The texts that are not hidden from the eye."""


def make_forecast() -> ForecastRecord:
    """Sizes from 100 to 50 MB, and a plan that is dominated."""
    points = [
        PointForecast(x / 20, 1e8 - 5e6 * x, 16.0 - x / 2, x / 20, 64.0 - 5 * x, 60.0 - 5 * x, 66.0 - 5 * x, x < 8, {})
        for x in range(11)
    ]
    points.append(PointForecast(0.9, 9e7, 14.0, 2.0, 1.0, 0.5, 1.5, False, {}))
    option = OptionForecast("int8", 0.5, 5e7, 0.1, 0.05, 0.2, 30.0)
    return ForecastRecord(
        config={"model": {"path": "models/a-13b"}},
        versions={"torch": "2.13.0"},
        command="compressor forecast model=hf model.path=models/a-13b",
        base={"parameters": 50_000_000, "bytes": 1e8, "bits_per_weight": 16.0, "expected_fdtm": 64.0},
        trusted_noise=1.0,
        components={f"layers.{n}.up": MatrixForecast("up", n, 4, True, [option]) for n in range(40)},
        curve=points,
        curves={"int8": points[:11]},
        checks=[CheckForecast(0.25, 7.5e7, 0.2, 39.0, {"fdtm": make_score(40.0, 2.0)})],
    )


def write_pages(folder: Path) -> dict[str, Path]:
    pages = {name: make_page(record, make_sequences()) for name, record in variants().items()}
    pages["forecast"] = make_forecast_page(make_forecast())
    for name, text in pages.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8", errors="backslashreplace")
    return {name: folder / f"{name}.html" for name in pages}


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_pages(tmp_path_factory.mktemp("pages"))


def read_tips(tab: Tab) -> list[str]:
    found: list[str] = tab.evaluate(f"{SHOWN}.map(tip => tip.textContent)")
    return found


def find_middle(tab: Tab, selector: str, index: int = 0) -> tuple[float, float]:
    """Scrolls an element into view; where its middle is then."""
    tab.evaluate(f"document.querySelectorAll({selector!r})[{index}].scrollIntoView({{block: 'center'}})")
    box = tab.evaluate(f"document.querySelectorAll({selector!r})[{index}].getBoundingClientRect().toJSON()")
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


OFTEN = [("large", PHONE), ("large", DESK), ("forecast", PHONE)]
RARE = [case for case in product([*variants(), "forecast"], (PHONE, DESK)) if case not in OFTEN]


@pytest.mark.parametrize(("name", "width"), [*OFTEN, *rarely_cases(RARE)])
def test_a_browser_draws_the_page_without_complaint(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    tab = browser.open(pages[name], width)
    # What a page says to the console: a blocked resource, a style it does not know.
    assert tab.messages == [] and tab.requests == [pages[name].as_uri()]
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("document.scripts.length") == 0
    broken = "[...document.querySelectorAll('svg')].filter(svg => svg.getBBox().width < 10 && svg.checkVisibility())"
    assert tab.evaluate(f"{broken}.length") == 0


def test_the_compressed_value_is_visible_on_a_phone(browser: Browser, pages: dict[str, Path]) -> None:
    tab = browser.open(pages["large"], PHONE)
    cells = tab.evaluate(
        "[...document.querySelectorAll('tbody tr')].slice(0, 4).map(row => {"
        "const cell = row.children[1], box = cell.getBoundingClientRect();"
        "return [cell.textContent, box.left, box.right]})"
    )
    assert [text for text, *_ in cells] == ["16.2", "24.0", "7.42", "0.1220"]
    assert all(0 < left < right <= PHONE for _, left, right in cells)
    # The result stands in the first two screens of a phone, above everything else.
    top = tab.evaluate("document.querySelector('.facts').getBoundingClientRect().top")
    assert top < 844 and top < tab.evaluate("document.querySelector('.notes').getBoundingClientRect().top")


@pytest.mark.parametrize("name", ["large", "forecast"])
def test_tips_answer_to_a_finger(browser: Browser, pages: dict[str, Path], name: str) -> None:
    tab = browser.open(pages[name], PHONE)
    assert read_tips(tab) == []
    for index in (0, 5):
        tab.tap(*find_middle(tab, ".marks input", index))
        # Where marks overlap, the finger meets the upper one.
        chosen = tab.evaluate("document.querySelector('.marks input:checked').nextElementSibling.textContent")
        assert read_tips(tab) == [chosen]
        box = tab.evaluate(f"{SHOWN}[0].getBoundingClientRect().toJSON()")
        assert 0 <= box["left"] < box["right"] <= PHONE


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_buttons_lie_over_their_marks(browser: Browser, pages: dict[str, Path], width: int) -> None:
    tab = browser.open(pages["large"], width)
    tab.tap(*find_middle(tab, ".marks input"))  # the same with a text that is shown
    measure = "element => { const box = element.getBoundingClientRect(); return [box.x, box.y, box.width, box.height] }"
    for name, marks in (("h", "path[stroke-width='0.5']"), ("s0", "path[fill^='var(--accent']")):
        picture = f"document.querySelector('[name={name}]').closest('.marks')"
        buttons, drawn = (
            tab.evaluate(f"[...{picture}.querySelectorAll({selector!r})].map({measure})")
            for selector in ("input", f"svg {marks}")
        )
        cells = [box for box in drawn if box[2] > 1][: len(buttons)]
        assert len(cells) == len(buttons) > 5
        for button, cell in zip(buttons, cells, strict=True):
            assert button == pytest.approx(cell, abs=2.0)


def test_tips_answer_to_a_mouse(browser: Browser, pages: dict[str, Path]) -> None:
    tab = browser.open(pages["large"], DESK)
    tab.hover(*find_middle(tab, ".marks input", 1))
    assert read_tips(tab) == [tab.evaluate("document.querySelectorAll('.tip')[1].textContent")]
    tab.hover(1.0, 1.0)
    assert read_tips(tab) == []


def test_tips_answer_to_keys_and_a_chart_is_one_stop(browser: Browser, pages: dict[str, Path]) -> None:
    tab = browser.open(pages["large"], DESK)
    charts = tab.evaluate("new Set([...document.querySelectorAll('.marks input')].map(input => input.name)).size")
    focused = "document.activeElement"
    visited = []
    tab.press("Tab")
    while not tab.evaluate(f"{focused} === document.body"):
        if tab.evaluate(f"{focused}.type === 'radio'"):
            visited.append(tab.evaluate(f"{focused}.name"))
            first = tab.evaluate(f"{focused}.nextElementSibling.textContent")
            assert first in read_tips(tab)
            tab.press("ArrowRight")
            second = tab.evaluate(f"{focused}.nextElementSibling.textContent")
            assert second != first and second in read_tips(tab)
        tab.press("Tab")
    # Those in a closed list of other metrics are no stop.
    assert len(visited) == len(set(visited)) == charts - 1


def test_every_mark_has_a_name_for_a_screen_reader(browser: Browser, pages: dict[str, Path]) -> None:
    tab = browser.open(pages["large"], DESK)
    nodes = tab.call("Accessibility.getFullAXTree")["nodes"]
    names = [node["name"]["value"] for node in nodes if node.get("role", {}).get("value") == "radio"]
    assert len(names) > 280 and all(names)
    assert any(name.startswith("model.layers.0.block.query_proj (query, layer 0): amount") for name in names)


def test_the_page_is_dark_where_the_system_is(browser: Browser, pages: dict[str, Path]) -> None:
    def read(dark: bool) -> tuple[str, str]:
        tab = browser.open(pages["large"], DESK, dark=dark)
        page = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        return page, tab.evaluate("getComputedStyle(document.querySelector('svg text')).fill")

    assert read(dark=False) == ("rgb(251, 251, 249)", "rgb(29, 33, 38)")
    assert read(dark=True) == ("rgb(20, 23, 27)", "rgb(231, 233, 236)")
