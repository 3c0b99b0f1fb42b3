"""The report: what a person and a program read after a run."""

import itertools
import json
import math
import random
import re
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import pytest

from compressor.artifacts.run_record import (
    ComponentRecord,
    CurvePoint,
    FinalRecord,
    MetricRecord,
    Record,
    ReferenceRecord,
    RoundRecord,
)
from compressor.contracts import Better, Metric, Reads, Score
from compressor.errors import OutputError
from compressor.report import read_report, summarize_run, write_report
from compressor.report.heat_map import choose_color, choose_ink, group_components, heat_map_svg
from compressor.report.line_chart import Point, line_chart_svg
from compressor.report.run_page import make_page
from tests.support.pages import Page, show

KINDS = ("query", "key", "value", "output", "gate", "up", "down")
PLANTED = '<script>alert("x")</script>'


def make_score(mean: float, width: float, most: float = 64.0) -> Score:
    return Score(
        mean=mean,
        median=mean * 0.9,
        p25=mean * 0.5,
        p75=mean * 1.3,
        min=0.0,
        max=most,
        low=mean - width,
        high=mean + width,
        p75_low=mean * 1.3 - width,
        p75_high=mean * 1.3 + width,
        n=64,
    )


def make_scores(amount: float) -> dict[str, Score]:
    return {
        "fdtm": make_score(64 * (1 - amount) ** 1.5, 2.0),
        "sdtm": make_score(40 * amount, 1.1),
        "perplexity": make_score(5.472 + 9 * amount**3, 0.045, 90.0),
        "kl": make_score(0.002 + amount**2 / 3, 0.0009, 2.0),
    }


METRICS = {
    "fdtm": MetricRecord("FDT", "Leading tokens on which candidate and base agree.", "tokens", "higher"),
    "sdtm": MetricRecord("SDT", "Tokens on which candidate and base differ.", "tokens", "lower"),
    "perplexity": MetricRecord("perplexity", "How surprised the candidate is by text.", "", "lower"),
    "kl": MetricRecord("KL", "What the candidate loses against the base.", "nats per token", "lower"),
}


def make_components(layers: int, experts: int = 0) -> dict[str, ComponentRecord]:
    draw = random.Random(0)
    found = {}
    for layer in range(layers):
        for index, kind in enumerate(KINDS):
            copies = experts if experts and kind in ("gate", "up", "down") else 1
            for copy in range(copies):
                amount = min(1.0, max(0.0, 0.75 - 0.09 * index + 0.3 * layer / layers + draw.uniform(-0.15, 0.1)))
                place = f"mlp.experts.{copy}.{kind}" if copies > 1 else f"block.{kind}"
                found[f"model.layers.{layer}.{place}_proj"] = ComponentRecord(
                    kind, layer, (4096, 1024), 4096 * 1024, "magnitude", amount, amount, 16.0, 16 * (1 - amount)
                )
    found["lm_head"] = ComponentRecord("lm_head", None, (32000, 4096), 32000 * 4096, None, 0.0, 0.0, 16.0, 16.0)
    return found


CURVE = [CurvePoint(n, n / 280, "fdtm", 60.0 - n, {"a": {}}, "p75") for n in range(1, 40)]


def make_record(layers: int = 40, experts: int = 0) -> Record:
    """A finished run with plausible numbers."""
    return Record(
        status="done",
        config={
            "model": {"path": "models/a-13b", "dtype": "bfloat16"},
            "data": {"source": "self", "prefixes": 64},
            "compressor": {"magnitude": {}},
            "schedule": {"targets": [0.2, 0.35, 0.45, 0.55, 0.6]},
        },
        versions={"compressor": "0.1.0", "torch": "2.13.0"},
        command="compressor run model=hf model.path=models/a-13b schedule=fdt_allocation",
        seconds=4242.0,
        phases={"load": 12.3, "reference": 60.0, "search": 4000.0, "proof": 150.0, "export": 19.7},
        noise_floor=64.0,
        reference=ReferenceRecord("sampled from the base", 64, 32, 64, 12, 3, "WikiText-2, 16,384 tokens"),
        metrics=dict(METRICS),
        rounds=[RoundRecord(t, t, make_scores(t), 560, 800.0) for t in (0.2, 0.35, 0.45, 0.55, 0.6)],
        base={"parameters": 13_015_864_320, "bytes": 26_031_728_640},
        final=FinalRecord(0.6, 0.6, 16.0, 6.4, 26_031_728_640, make_scores(0.6)),
        components=make_components(layers, experts),
        notes=["The estimate sees the weight's part only."],
    )


def plant_markup(record: Record) -> Record:
    """The same run, with markup wherever a user, a model or a plugin can put words."""
    record.config["model"]["path"] = PLANTED
    record.config[PLANTED] = PLANTED
    record.versions[PLANTED] = PLANTED
    record.phases[PLANTED] = 1.0
    record.command += PLANTED
    record.notes.append(PLANTED)
    record.metrics["fdtm"] = MetricRecord(PLANTED, PLANTED, "tokens", PLANTED)
    record.components[PLANTED] = ComponentRecord(PLANTED, 0, (2, 2), 4, PLANTED, 0.5, 0.5, 16.0, 8.0)
    assert record.reference is not None
    record.reference.source = record.reference.perplexity_text = PLANTED
    return record


def variants() -> dict[str, Record]:
    """Runs of every kind that a page must be able to show."""
    failed = Record("failed", {}, {}, error=f"no schedule is chosen {PLANTED}")
    bare = make_record(2)
    bare.metrics, bare.reference, bare.noise_floor, bare.base, bare.rounds = {}, None, None, {}, []
    untouched = make_record(2)
    assert untouched.final is not None
    untouched.final.scores = {"fdtm": Score(64, 64, 64, 64, 64, 64, 64, 64, 64, 64, 8)}
    unscored = make_record(2)
    assert unscored.final is not None
    unscored.final.scores = {}
    unscored.rounds[0].scores = {}
    broken = make_record(2)
    assert broken.final is not None
    broken.final.scores["perplexity"] = Score(*[math.inf] * 5, math.nan, *[math.nan] * 4, 3)
    broken.components["lm_head"].amount = math.nan
    return {
        "large": make_record(40),
        "experts": make_record(40, experts=8),
        "many experts": make_record(24, experts=64),
        "long": make_record(126),
        "planted": plant_markup(make_record(3)),
        "failed": failed,
        "bare": bare,
        "untouched": untouched,
        "unscored": unscored,
        "broken": broken,
    }


@pytest.mark.parametrize("name", variants())
def test_page_is_one_well_formed_file_that_loads_nothing(name: str) -> None:
    text = make_page(variants()[name])
    page = Page(text)
    assert page.open == []
    assert len(text.encode()) < 1_000_000
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not {"src", "href", "srcset", "data"} & {key for key, _ in page.attributes}
    assert not [key for key, _ in page.attributes if key.startswith("on")]
    assert "@import" not in text and "url(" not in text
    assert set(re.findall(r"https?://[^\"'<> ]*", text)) <= {"http://www.w3.org/2000/svg"}


def test_page_is_sane_for_a_screen_reader_and_a_phone() -> None:
    text = make_page(make_record())
    page = Page(text)
    assert '<html lang="en">' in text and "<title>models/a-13b – compression report</title>" in text
    assert 'name="viewport" content="width=device-width' in text
    assert page.tags.count("h1") == 1
    assert page.tags.count("caption") == page.tags.count("table") >= 4
    assert 'scope="col"' in text and 'scope="row"' in text
    assert text.count('role="img" aria-label=') == page.tags.count("svg") == 2
    assert "prefers-color-scheme: dark" in text


def test_markup_in_any_word_of_a_run_is_only_text() -> None:
    record = plant_markup(make_record(3))
    for text in (make_page(record), make_page(variants()["failed"]), heat_map_svg(record.components)):
        assert "<script" not in text
        assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in text
    assert Page(make_page(record)).text.count(PLANTED) >= 10


def test_what_no_xml_may_hold_does_not_break_the_picture() -> None:
    record = make_record(1)
    record.components["layers.0\x00\x1b\udc80\uffff"] = record.components["lm_head"]
    ElementTree.fromstring(heat_map_svg(record.components))
    assert "\udc80" not in make_page(record)


def test_page_tells_the_story_first() -> None:
    text = Page(make_page(make_record())).text
    assert "60 % of the bits of 281 weight matrices were taken away by magnitude." in text
    assert "agrees with the original for 16.2 of 64 tokens on average (95 % interval 14.2 – 18.2)" in text
    assert "On disk the model still takes 26 GB: the format" in text
    assert text.index("16.2 of 64") < text.index("What was taken away") < text.index("Scores") < text.index("Rounds")
    smaller = make_record()
    assert smaller.final is not None
    smaller.final.bytes = 13_015_864_320
    assert "On disk it went from 26 GB to 13 GB." in make_page(smaller)
    assert "said the same as the original every time, for all 64 tokens" in make_page(variants()["untouched"])


def test_page_shows_what_was_recorded() -> None:
    text = Page(make_page(make_record(2))).text
    for words in ("FDT, of 64 tokens", "KL, nats per token", "0.1211 – 0.1229", "WikiText-2", "3 tokens mended"):
        assert words in text
    for words in ("model.layers.1.block.down_proj", "4,096 × 1,024", "1 h 06 min", "2.13.0", "data.prefixes=64"):
        assert words in text
    assert "The estimate sees the weight's part only." in text
    assert "Leading tokens on which candidate and base agree." in text


def test_a_metric_without_a_label_goes_by_its_name() -> None:
    class Plain(Metric):
        """How plain it is.

        More.
        """

        name = "plain"
        reads = Reads.PREDICTED
        better = Better.LOWER
        unit = "points"

        def sequence_values(self, candidate: object, base: object) -> NoReturn:
            raise NotImplementedError

    assert MetricRecord.of(Plain()) == MetricRecord("plain", "How plain it is.", "points", "lower")
    Plain.label = "Plainness"
    assert MetricRecord.of(Plain()).label == "Plainness"
    assert Record("done", {}, {}).metric("other") == MetricRecord("other")


def test_page_names_the_original_where_it_was_scored() -> None:
    record = make_record(2)
    assert "original" not in make_page(record).split("<h2>Scores")[1].split("<p")[0]
    record.base["scores"] = {"perplexity": make_scores(0.0)["perplexity"]}
    assert "<td>5.472</td>" in make_page(record).split("<h2>Scores")[1]
    assert "7.42 (7.37 – 7.46), original 5.472" in show(summarize_run(record))


def test_numbers_that_are_not_finite_are_dashes() -> None:
    record = variants()["broken"]
    for text in (Page(make_page(record)).text, show(summarize_run(record))):
        assert not re.search(r"\b(nan|inf|None)\b", text)
        assert "–" in text


def test_a_long_table_of_components_is_grouped() -> None:
    text = Page(make_page(make_record(24, experts=64))).text
    assert "4,705 components, as means of a kind and a layer; report.json lists each one" in text
    assert "64 × gate" in text
    assert "layers.3.mlp.experts.7.gate_proj" not in text


def test_a_failed_run_says_why() -> None:
    text = Page(make_page(variants()["failed"])).text
    assert "This run failed: no schedule is chosen" in text
    assert "no schedule is chosen" in show(summarize_run(variants()["failed"]))


def parse_cells(svg: str) -> list[tuple[str, float, float, str]]:
    """Tooltip, x, y and colour of each cell."""
    cells = []
    for group in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}g"):
        title = group.find("{http://www.w3.org/2000/svg}title")
        rect = group.find("{http://www.w3.org/2000/svg}rect")
        assert title is not None and rect is not None
        cells.append((title.text or "", float(rect.attrib["x"]), float(rect.attrib["y"]), rect.attrib["fill"]))
    return cells


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
    first = record.components["model.layers.0.block.query_proj"]
    assert f">{100 * first.amount:.0f}</text>" in svg
    assert f"{100 * first.amount:.1f} %, magnitude, sparsity" in svg


def test_heat_map_stands_alone() -> None:
    svg = heat_map_svg(make_record(2).components)
    assert svg.startswith('<svg xmlns="http://www.w3.org/2000/svg" width="')
    assert "viewBox" in svg and "100 %" in svg and "font-family" in svg
    # Outside the page no variable is set: the grey that either background allows is used.
    assert 'fill="#757575" style="fill:var(--text, #757575)"' in svg


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
    assert 'font-size="11"' in heat_map_svg(make_components(48 - 1))
    narrow = heat_map_svg(make_components(80))
    assert 'font-size="11"' not in narrow
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


def test_chart_is_drawn_from_what_is_finite() -> None:
    points = [Point(0.4, 20.0, 18.0, 22.0), Point(0.2, 50.0, 48.0, 52.0), Point(0.3, math.nan, 1.0, 2.0)]
    svg = ElementTree.fromstring(line_chart_svg(points, "FDT <tokens>", 64.0))
    (line,) = svg.iter("{http://www.w3.org/2000/svg}polyline")
    spots = [tuple(map(float, spot.split(","))) for spot in line.attrib["points"].split()]
    assert len(spots) == 2 and spots[0][0] < spots[1][0] and spots[0][1] < spots[1][1]
    texts = [text.text for text in svg.iter("{http://www.w3.org/2000/svg}text")]
    assert {"FDT <tokens>", "64", "32", "0", "40 %", "20 %"} <= set(texts)
    assert line_chart_svg(points[:1], "FDT") == ""


@pytest.mark.parametrize("name", variants())
def test_report_json_reads_back(name: str, tmp_path: Path) -> None:
    record = variants()[name]
    write_report(record, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
    assert (tmp_path / "report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")

    def reject(word: str) -> float:
        raise AssertionError(f"{word} is not JSON")

    json.loads((tmp_path / "report.json").read_text(encoding="utf-8"), parse_constant=reject)
    found = read_report(tmp_path)
    if name != "broken":
        assert found == record
    else:
        assert found.final is not None and math.isnan(found.final.scores["perplexity"].mean)
        assert math.isnan(found.components["lm_head"].amount)


def test_report_of_another_version_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"status": "done", "config": {}, "versions": {}, "moon": "full"}')
    assert read_report(tmp_path) == Record("done", {}, {})


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not valid JSON"),
        ('{"status": "done", "config', "is not valid JSON"),
        ("[]", "the whole must be an object, got list"),
        ('{"status": "done", "config": {}}', "`versions` is missing"),
        ('{"status": 3, "config": {}, "versions": {}}', "`status` must be str, got 3"),
        ('{"status": "done", "config": {}, "versions": {}, "seconds": "1"}', "`seconds` must be float, got '1'"),
        ('{"status": "done", "config": {}, "versions": {}, "rounds": [{}]}', "`rounds.0.target` is missing"),
        ('{"status": "done", "config": {}, "versions": {}, "base": 1}', "`base` must be dict"),
    ],
)
def test_a_damaged_report_is_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(OutputError) as caught:
        read_report(tmp_path)
    assert complaint in str(caught.value) and str(tmp_path / "report.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_report_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"^cannot read .*report.json: No such file or directory; is this the folder"):
        read_report(tmp_path)


def test_summary_fits_a_terminal_and_speaks_to_people() -> None:
    text = show(summarize_run(make_record()))
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert lines[0] == "models/a-13b: 60 % taken away by magnitude"
    assert "FDT 16.2 of 64 tokens (14.2 – 18.2) 21.0 (19.0 – 23.0)" in lines
    assert "KL, nats per token 0.1220 (0.1211 – 0.1229) 0.1586 (0.1577 – 0.1595)" in lines
    assert "bits per weight 16 as saved, 6.4 packed" in lines
    assert "size on disk 26 GB → 26 GB (unchanged)" in lines
    assert "noise floor 64 of 64 tokens, as it must" in lines
    assert "…" not in text


def test_summary_takes_brackets_for_text() -> None:
    record = variants()["failed"]
    record.error = "unknown metric `[red]fdt[/red]`"
    record.config = {"model": {"path": "[/b]"}}
    assert "`[red]fdt[/red]`" in show(summarize_run(record))


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium on PATH to draw the page with")
def test_a_browser_draws_the_page_without_complaint(tmp_path: Path) -> None:
    write_report(make_record(), tmp_path)
    picture = tmp_path / "page.png"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    command += ["--enable-logging=stderr", "--v=0", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--screenshot={picture}", "--window-size=1200,1600", (tmp_path / "report.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0 and picture.stat().st_size > 20_000
    # What a page says to the console: a blocked resource, a style it does not know.
    assert "CONSOLE" not in done.stderr


def test_what_a_search_found_on_its_way_is_drawn() -> None:
    record = make_record()
    assert "treated" not in make_page(record)
    record.rounds[-1].curve = CURVE
    page = make_page(record)
    assert "best FDT found, p75, tokens over share of weights treated" in page
    (drawn,) = re.findall(r"<svg(?:(?!<svg).)*share of weights treated</text>.*?</svg>", page, re.DOTALL)
    assert drawn.count("<circle") == len(CURVE) and "amount" not in re.sub("<title>.*?</title>", "", drawn)
