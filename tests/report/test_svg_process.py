"""The process that draws pictures may fail in every way: the next picture is drawn, and a page says what is missing."""

import os
import signal
import sys
from xml.etree import ElementTree

import pytest

from compressor.report import vega
from compressor.report.svg_process import NotDrawn, SvgProcess

BARS = {"mark": "bar", "data": {"values": [{"a": 1}]}, "encoding": {"x": {"field": "a"}}}


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_killed_is_started_again(sent: signal.Signals) -> None:
    drawn = SvgProcess()
    svg = drawn.convert(BARS)
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    process = drawn._process
    assert process is not None and drawn.convert(BARS) == svg and drawn._process is process, "one for all pictures"
    os.kill(process.pid, sent)
    process.wait()
    assert drawn.convert(BARS) == svg


def test_what_cannot_be_drawn_ends_the_process_and_nothing_else() -> None:
    drawn = SvgProcess()
    with pytest.raises(NotDrawn, match=r"ended \(status 1\)"):
        drawn.convert({"mark": 5})
    assert "<svg" in drawn.convert(BARS)


def test_an_interrupted_picture_is_not_the_answer_to_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = SvgProcess()
    wanted = drawn.convert(BARS)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("select.select", interrupt)
        drawn.convert({**BARS, "title": "another"})
    assert drawn.convert(BARS) == wanted


def test_a_forked_process_has_its_own() -> None:
    drawn = SvgProcess()
    wanted = drawn.convert(BARS)
    child = os.fork()
    if child == 0:
        os._exit(drawn.convert({**BARS, "title": "another"}) == wanted)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert drawn.convert(BARS) == wanted


def test_a_page_says_which_picture_is_missing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(vega, "DRAWN", SvgProcess())
    monkeypatch.setattr(sys, "executable", "/missing")
    picture = vega.draw_layers([vega.plot([{"a": 1}]).mark_bar().encode(x="a:Q")], "bars")
    texts = [text.text for text in ElementTree.fromstring(picture.svg).iter(f"{{{vega.SVG}}}text")]
    assert texts == ["This picture is missing: [Errno 2] No such file or directory: '/missing'."]
    assert (picture.label, picture.tips) == ("bars", [])
    assert [record.getMessage() for record in caplog.records] == [
        "a picture is missing: [Errno 2] No such file or directory: '/missing'"
    ]
