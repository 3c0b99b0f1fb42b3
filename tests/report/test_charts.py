"""Charts: what is drawn where, and that each mark's text can be read without a script."""

import itertools
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from compressor.artifacts.forecast_record import MatrixForecast, OptionForecast
from compressor.artifacts.run_record import ComponentRecord
from compressor.report.cost_map import draw_cost_map
from compressor.report.heat_map import choose_color, choose_ink, draw_heat_map, group_components, heat_map_svg
from compressor.report.histogram import count_tokens, count_values, draw_histogram
from compressor.report.line_chart import Axes, Point, draw_lines
from compressor.report.vega import Picture
from tests.support.pages import KINDS, PLANTED, make_components, make_record

SVG = "{http://www.w3.org/2000/svg}"
ROOT = Path(__file__).parents[2]


def parse_cells(svg: str) -> list[tuple[str, float, float, str]]:
    """Tooltip, x, y and colour of each cell."""
    cells = []
    for path in ElementTree.fromstring(svg).iter(f"{SVG}path"):
        title = path.find(f"{SVG}title")
        if title is not None:
            place = re.match(r"M([\d.]+),([\d.]+)h", path.attrib["d"])
            assert place is not None and path.attrib["aria-label"] == title.text
            cells.append((title.text or "", float(place[1]), float(place[2]), path.attrib["fill"]))
    return cells


def list_texts(picture: Picture) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(picture.svg).iter(f"{SVG}text")]


def count_lines(picture: Picture) -> int:
    """Lines that are no circle, no axis and no cell: open paths that are drawn and not filled."""
    paths = ElementTree.fromstring(picture.svg).iter(f"{SVG}path")
    return sum("L" in path.attrib["d"] and "Z" not in path.attrib["d"] and "stroke" in path.attrib for path in paths)


def test_heat_map_puts_kinds_in_rows_and_layers_in_columns() -> None:
    record = make_record(40)
    svg = heat_map_svg(record.components)
    cells = parse_cells(svg)
    assert len(cells) == 40 * 7 + 1
    assert len({y for _, _, y, _ in cells}) == 8 and len({x for _, x, _, _ in cells}) == 41
    place = {title.split(" ")[0]: (x, y) for title, x, y, _ in cells}
    assert place["model.layers.3.block.query_proj"][1] == place["model.layers.9.block.query_proj"][1]
    assert place["model.layers.3.block.query_proj"][0] == place["model.layers.3.block.down_proj"][0]
    assert place["lm_head"][0] == max(x for x, _ in place.values())
    rows = [place[f"model.layers.0.block.{kind}_proj"][1] for kind in KINDS]
    assert rows == sorted(rows)
    columns = [place[f"model.layers.{layer}.block.query_proj"][0] for layer in range(40)]
    assert columns == sorted(columns)
    first = record.components["model.layers.0.block.query_proj"]
    assert f">{100 * first.amount:.0f}</text>" in svg
    assert f"{100 * first.amount:.1f} %, magnitude, sparsity" in svg
    colors = {title.split(" ")[0]: color for title, _, _, color in cells}
    assert colors["model.layers.0.block.query_proj"] == choose_color(first.amount)


def test_heat_map_stands_alone() -> None:
    svg = heat_map_svg(make_record(2).components)
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="')
    assert "viewBox" in svg and "100 %" in svg and "font-family" in svg
    # Outside the page no variable is set: the grey that either background allows is used.
    assert 'fill="#757575"' in svg and "var(" not in svg
    assert set(re.findall(r"https?://[^\"'<> ]*", svg)) == {"http://www.w3.org/2000/svg"}
    assert "url(" not in svg and " id=" not in svg


def test_heat_map_of_the_readme_is_one_of_ours() -> None:
    svg = (ROOT / "docs" / "heat-map.svg").read_text(encoding="utf-8")
    assert len(parse_cells(svg)) == 42 and "of the bits were removed" in svg


def test_heat_map_without_components_is_still_a_picture() -> None:
    ElementTree.fromstring(heat_map_svg({}))


def test_experts_are_one_cell_with_their_weighted_mean() -> None:
    small = ComponentRecord("gate", 0, (2, 2), 4, "magnitude", 0.2, 0.2, 16.0, 16.0)
    large = ComponentRecord("gate", 0, (2, 6), 12, None, 0.6, 0.6, 16.0, 8.0)
    cell = group_components({"a": small, "b": large})["gate", 0]
    assert cell.mean("amount") == pytest.approx((4 * 0.2 + 12 * 0.6) / 16)
    assert cell.describe() == (
        "2 × gate, layer 0: mean amount 50 % (20 % to 60 %), magnitude and untouched, sparsity 50 %, 10 bits per weight"
    )
    ((title, *_),) = parse_cells(heat_map_svg({"a": small, "b": large}))
    assert title == cell.describe()


def test_numbers_are_left_out_where_cells_are_narrow() -> None:
    def list_numbers(svg: str) -> list[str]:
        texts = ElementTree.fromstring(svg).iter(f"{SVG}text")
        return [text.text or "" for text in texts if text.attrib["font-size"] == "11px" and text.text]

    assert len(list_numbers(heat_map_svg(make_components(48 - 1)))) == 47 * 7 + 1
    narrow = heat_map_svg(make_components(80))
    assert list_numbers(narrow) == []
    assert len(parse_cells(narrow)) == 80 * 7 + 1


def measure_luminance(color: str) -> float:
    channels = [int(color[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_colors_darken_evenly_and_their_numbers_are_readable() -> None:
    amounts = [index / 100 for index in range(101)]
    light = [measure_luminance(choose_color(amount)) for amount in amounts]
    assert all(after < before for before, after in itertools.pairwise(light))
    assert len({choose_color(amount) for amount in amounts}) == 101
    for amount, luminance in zip(amounts, light, strict=True):
        ink = measure_luminance(choose_ink(amount))
        assert (max(ink, luminance) + 0.05) / (min(ink, luminance) + 0.05) >= 4.4
    assert choose_color(-1.0) == choose_color(0.0) and choose_color(2.0) == choose_color(1.0)


def test_tips_lie_over_their_marks() -> None:
    picture = draw_heat_map(make_components(6))
    root = ElementTree.fromstring(picture.svg)
    assert len(picture.tips) == 6 * 7 + 1 and "aria-label" not in "".join(
        str(path.attrib) for path in root.iter(f"{SVG}path")
    )
    assert len({(tip.left, tip.top) for tip in picture.tips}) == len(picture.tips)
    for tip in picture.tips:
        assert 0 <= tip.left and tip.left + tip.width <= 100 and 0 <= tip.top and tip.top + tip.height <= 100
    query = [tip for tip in picture.tips if "query" in tip.text]
    steps = [after.left - before.left for before, after in itertools.pairwise(query)]
    assert len({tip.top for tip in query}) == 1 and steps == pytest.approx([steps[0]] * 5)
    assert 0.8 * steps[0] < query[0].width < steps[0]


def test_chart_is_drawn_from_what_is_finite() -> None:
    points = [
        Point(0.4, 20.0, 18.0, 22.0, "20 at 40 %"),
        Point(0.2, 50.0, 48.0, 52.0, "50 at 20 %"),
        Point(0.3, math.nan, 1.0, 2.0, "not known"),
    ]
    picture = draw_lines({"": points}, Axes("amount", "FDT <tokens>", 64.0))
    assert picture is not None
    left, right = picture.tips
    assert left.text == "50 at 20 %" and right.text == "20 at 40 %"
    assert left.left < right.left and left.top < right.top
    assert {"FDT <tokens>", "amount", "64", "32", "0", "40%", "20%"} <= set(list_texts(picture))
    assert draw_lines({"": points[:1]}, Axes("amount", "FDT")) is None


def test_two_points_are_not_joined() -> None:
    points = [Point(x / 10, 50.0 - x, 40.0 - x, 60.0 - x, f"at {x}") for x in range(5)]
    two, three = (draw_lines({"": points[:count]}, Axes("amount", "FDT", 64.0)) for count in (2, 3))
    assert two is not None and three is not None
    assert count_lines(two) == 0 and count_lines(three) == 1
    assert len(two.tips) == 2 and len(three.tips) == 3


def test_lines_are_dashed_where_they_are_not_trusted() -> None:
    points = [Point(x, x, x, x, f"at {x}", trusted=x > 2) for x in range(6)]
    picture = draw_lines({"a": points, "b": points[3:]}, Axes("size", "FDT", is_share=False))
    assert picture is not None
    assert picture.svg.count('stroke-dasharray="3,4"') == 1 and count_lines(picture) >= 3
    assert {"a", "b"} <= set(list_texts(picture))
    assert [tip.text for tip in picture.tips if tip.text.startswith("b, ")] != []


def test_marks_are_rings_above_the_curves() -> None:
    points = [Point(x, x, x, x, f"at {x}") for x in range(4)]
    picture = draw_lines({"": points}, Axes("size", "FDT", is_share=False), [Point(1.0, 2.0, 1.0, 3.0, "counted")])
    assert picture is not None and picture.tips[-1].text == "counted" and "var(--page, #ffffff)" in picture.svg


@pytest.mark.parametrize("most", [4, 16, 64, 100])
def test_every_prefix_is_in_one_bar(most: int) -> None:
    values = [float(value) for value in range(most + 1)]
    bars = count_tokens(values, most)
    assert sum(count for *_, count, _ in bars) == len(values)
    assert bars[-1][2:] == (1, f"all {most} tokens") and bars[0][0] == 0
    assert all(after[0] <= before[1] for before, after in itertools.pairwise(bars))


def test_bars_of_other_values_are_of_equal_width() -> None:
    values = [0.0, 0.1, 0.5, 0.5, 1.0]
    bars = count_values(values)
    assert sum(count for *_, count, _ in bars) == 5 and bars[0][2] == 1 and bars[-1][2] == 1
    assert {round(high - low, 9) for low, high, *_ in bars} == {round(1 / 16, 9)}


def test_histogram_marks_the_mean_and_needs_a_spread() -> None:
    picture = draw_histogram([float(value) for value in range(20)], "FDT, tokens", 64)
    assert picture is not None and {"mean 9.5", "FDT, tokens", "prefixes"} <= set(list_texts(picture))
    assert picture.tips[0].text == "0 to 3 tokens: 4 of 20 prefixes (20 %)"
    assert draw_histogram([1.0] * 20, "FDT") is None and draw_histogram([1.0, 2.0], "FDT") is None
    assert draw_histogram([math.nan] * 9 + [1.0, 2.0], "FDT") is None


def test_markup_in_any_word_of_a_chart_is_only_text() -> None:
    points = [Point(x, x, x, x, PLANTED) for x in range(4)]
    option = OptionForecast(PLANTED, 0.5, 1.0, 0.1, 0.05, 0.2, 30.0)
    pictures = [
        draw_lines({PLANTED: points, "b": points}, Axes(PLANTED, PLANTED, is_share=False)),
        draw_histogram([float(value) for value in range(20)], PLANTED),
        draw_cost_map({PLANTED: MatrixForecast(PLANTED, 0, 4, True, [option])}),
    ]
    for picture in pictures:
        assert picture is not None and "<script" not in picture.svg
        assert any(PLANTED in text for text in list_texts(picture))


def test_cost_map_has_a_panel_for_each_kind() -> None:
    def make_options(cost: float) -> list[OptionForecast]:
        return [OptionForecast("int8", 0.5, 1.0, cost, cost / 2, cost * 2, 30.0)]

    matrices = {
        f"layers.{layer}.{kind}": MatrixForecast(kind, layer, 4, layer < 2, make_options(10.0 ** (layer - 3)))
        for kind in ("up", "down")
        for layer in range(3)
    }
    picture = draw_cost_map(matrices)
    assert picture is not None and len(picture.tips) == 6
    assert {"up", "down", "int8 50 %", "0", "2"} <= set(list_texts(picture))
    (tip,) = [tip for tip in picture.tips if tip.text.startswith("layers.0.up,")]
    assert tip.text == "layers.0.up, int8 50 %: σ² 0.001 (5.0e-04 – 0.0020), alone an expected FDT of 30.0"
    assert picture.svg.count('stroke-dasharray="2,2"') == 2
    assert sum("no token came here, nothing is known" in tip.text for tip in picture.tips) == 2
    assert draw_cost_map({}) is None
