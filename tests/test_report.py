"""The report: what a person and a program read after a run."""

import json
import math
import random
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from compressor.chart import Point, line_chart_svg
from compressor.errors import OutputError
from compressor.heatmap import choose_color, choose_ink, group_components, heat_map_svg
from compressor.page import make_page
from compressor.record import ComponentRecord, FinalRecord, MetricRecord, Record, ReferenceRecord, RoundRecord
from compressor.report import read_report, summarize_run, write_report
from compressor.values import Score

KINDS = ("query", "key", "value", "output", "gate", "up", "down")
PLANTED = '<script>alert("x")</script>'
VOID = {"meta", "br", "hr", "img", "input", "link"}


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
