"""The report: what a person and a program read after a run."""

import json
import math
import re
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

import pytest

from compressor.artifacts.run_record import ExportRecord, MetricRecord, Record, VerificationRecord
from compressor.contracts import Better, Metric, Reads
from compressor.errors import OutputError
from compressor.report import read_report, summarize_run, write_report
from compressor.report.heat_map import heat_map_svg
from compressor.report.run_page import make_page
from compressor.report.run_report import choose_metrics, read_sequences
from tests.support.pages import (
    CURVE,
    PLANTED,
    Page,
    make_record,
    make_scores,
    make_sequences,
    plant_markup,
    show,
    variants,
)


@pytest.mark.parametrize("name", variants())
def test_page_is_one_well_formed_file_that_loads_nothing(name: str) -> None:
    text = make_page(variants()[name], make_sequences())
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
    assert page.tags.count("input") == page.tags.count("label") > 280
    assert "prefers-color-scheme: dark" in text


def test_markup_in_any_word_of_a_run_is_only_text() -> None:
    record = plant_markup(make_record(3))
    for text in (make_page(record), make_page(variants()["failed"])):
        assert "<script" not in text
        assert "&lt;script&gt;alert(&#34;x&#34;)&lt;/script&gt;" in text
    svg = heat_map_svg(record.components)
    assert "<script" not in svg and "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;" in svg
    assert Page(make_page(record)).text.count(PLANTED) >= 10


def test_what_no_xml_may_hold_does_not_break_the_picture() -> None:
    record = make_record(1)
    record.components["layers.0\x00\x1b\udc80\uffff"] = record.components["lm_head"]
    ElementTree.fromstring(heat_map_svg(record.components))
    page = make_page(record)
    assert not set("\x00\x1b\udc80\uffff") & set(page) and "layers.0\ufffd" in page


def test_page_tells_the_story_first() -> None:
    text = Page(make_page(make_record())).text
    assert "magnitude removed 60 % of the bits of 281 weight matrices" in text
    assert "agrees with the original for 16.2 of 64 tokens on average (95 % interval 14.2 – 18.2)" in text
    assert "The model takes 26 GB on disk, as before: " in text and "the format that it is saved in stores" in text
    places = [text.index(words) for words in ("16.2 of 64", "size on disk", "Scores", "What was removed", "Rounds")]
    assert places == sorted(places) and places[-1] < text.index("The estimate sees the weight's part only.")
    smaller = make_record()
    assert smaller.final is not None
    smaller.final.bytes = 13_015_864_320
    assert "The model went from 26 GB to 13 GB on disk, 50 % smaller: magnitude removed" in make_page(smaller)
    assert "said the same as the original every time, for all 64 tokens" in make_page(variants()["untouched"])


def test_page_shows_what_was_recorded() -> None:
    text = Page(make_page(make_record(2))).text
    for words in (
        "FDT, of 64 tokens",
        "KL, nats per token",
        "0.1211 – 0.1229",
        "WikiText-2",
        "3 tokens were corrected",
    ):
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
    assert "perplexity 7.42 7.37 – 7.46 5.472" in " ".join(show(summarize_run(record)).split())


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
    assert lines[0] == "models/a-13b: magnitude removed 60 % of the bits"
    assert "FDT, of 64 tokens 16.2 14.2 – 18.2 21.0" in lines
    assert "KL, nats per token 0.1220 0.1211 – 0.1229 0.1586" in lines
    assert "bits per weight 16 in the files, 6.4 if packed scales counted" in lines
    assert "size on disk 26 GB → 26 GB (unchanged)" in lines
    assert "original against itself 64 of 64 tokens, passed the noise floor of the measurement" in " ".join(lines)
    assert "…" not in text and max(map(len, text.splitlines())) <= 80


def test_summary_shows_four_metrics_and_names_the_others() -> None:
    record = make_record(2)
    assert record.final is not None
    record.final.scores |= {"odd": make_scores(0.5)["kl"], "divergent_perplexity": make_scores(0.5)["kl"]}
    text = show(summarize_run(record))
    (others,) = [line.strip() for line in text.splitlines() if line.startswith("In report.html too")]
    assert others == "In report.html too: perplexity, odd"
    assert choose_metrics(["a", "b", "c", "d", "e"]) == (["a", "b", "c", "d"], ["e"])
    assert choose_metrics(["kl", "a", "b", "c", "fdtm"]) == (["kl", "a", "b", "fdtm"], ["c"])


def test_summary_takes_brackets_for_text() -> None:
    record = variants()["failed"]
    record.error = "unknown metric `[red]fdt[/red]`"
    record.config = {"model": {"path": "[/b]"}}
    assert "`[red]fdt[/red]`" in show(summarize_run(record))


def test_what_a_search_found_on_its_way_is_drawn() -> None:
    record = make_record()
    assert "treated" not in make_page(record)
    record.rounds[-1].curve = CURVE
    page = make_page(record)
    assert "best FDT found, p75, tokens over share of weights treated" in page
    (drawn,) = re.findall(r"<svg(?:(?!<svg).)*share of weights treated</text>.*?</svg>.*?</figure>", page, re.DOTALL)
    tips = re.findall(r'<span class="tip">([^<]*)</span>', drawn)
    assert len(tips) == len(CURVE) and tips[0] == "1 components, 0.4 % of the weights: FDT 59"
    assert "amount" not in drawn


def test_two_points_are_not_joined_and_one_round_has_no_chart() -> None:
    record = make_record(2)
    assert "FDT, tokens over bits removed" in make_page(record)
    record.rounds = record.rounds[:1]
    assert "over bits removed" not in make_page(record)


def test_the_spread_over_the_prefixes_is_drawn(tmp_path: Path) -> None:
    record, values = make_record(2), make_sequences()
    text = Page(make_page(record, values)).text
    few = sum(value < 4 for value in values["fdtm"])
    assert f"0 to 3 tokens: {few} of 64 prefixes" in text
    assert f"all 64 tokens: {values['fdtm'].count(64.0)} of 64 prefixes" in text
    assert "How the scores are spread" not in make_page(record)
    lines = [json.dumps({"index": index, "fdtm": value}) for index, value in enumerate(values["fdtm"])]
    (tmp_path / "sequences.jsonl").write_text("\n".join(lines) + "\n")
    assert read_sequences(tmp_path) == {"fdtm": values["fdtm"]}
    write_report(record, tmp_path)
    assert f"0 to 3 tokens: {few} of 64" in (tmp_path / "report.html").read_text()
    (tmp_path / "sequences.jsonl").write_text(lines[0] + "\n{torn")
    assert read_sequences(tmp_path) == {}
    write_report(record, tmp_path)


def test_a_checked_export_is_a_fact_and_notes_are_no_warning() -> None:
    record = make_record(2)
    record.export = ExportRecord("dense", "bfloat16", 0, VerificationRecord(64, 0.0, 1e-3, 0, 1.0))
    page = make_page(record)
    assert "loaded again: same logits on 64 prefixes" in page
    assert 'class="failed"' not in page and 'class="failed"' in make_page(variants()["failed"])
