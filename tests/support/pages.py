"""Records of runs that pages must be able to show, and what reads a page back."""

import math
import random
from html.parser import HTMLParser

from rich.console import Console

from compressor.artifacts.run_record import (
    ComponentRecord,
    CurvePoint,
    FinalRecord,
    MetricRecord,
    Record,
    ReferenceRecord,
    RoundRecord,
)
from compressor.contracts import Score

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


class Page(HTMLParser):
    """Reads a page: which tags are left open, what is visible, which attributes there are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] != "style":
            self.text += data


def show(renderable: object, width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


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


def make_sequences(count: int = 64) -> dict[str, list[float]]:
    """Values of each prefix as sequences.jsonl has them: some prefixes agree throughout, most part early."""
    draw = random.Random(1)
    return {
        "fdtm": [float(min(64, int(draw.expovariate(1 / 16)))) for _ in range(count)],
        "kl": [draw.expovariate(8) for _ in range(count)],
    }
