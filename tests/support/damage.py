"""Damage of files at random places, and what it may lead to: success, or one line."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path

from hypothesis import strategies as st

from compressor.errors import CompressorError

SLOWEST = 10.0
"""Seconds that any input may take."""
DEEP, LONG = 100_000, 10_000_000
HUGE = ("1e400", "1" + "0" * 400, "9" * 5000, "NaN", "Infinity", "-1e400", "-0", "1e-400")
ODD = (
    '"\\ud800"',
    '"\\u0000"',
    '"a\\nb"',
    "null",
    "true",
    "[]",
    "{}",
    '""',
    "0",
    "[[]]",
    '{"": null}',
    '"${oc.env:HOME}"',
)


PIECES = st.sampled_from((
    "seed", "data.prefixes", "data.path", "model", "metric", "schedule", "schedule.targets", "compressor",
    "hydra.run.dir", "=", "=", "=", "+", "++", "~", "@", ",", ".", "/", "[", "]", "{", "}", "(", ")", "'", '"', "\\",
    "${", "}", ":", "range(", "choice(", "glob(*)", "uniform", "tiny", "int8", "null", "true", "nan", "1e400",
    "1" + "0" * 400, "1", "-1", "inf", "[]", "(a|aa)+$",
    "\0", "\x1b[31m", "\u202e", "\ud800", "\n", " ", "a" * 300, "[" * 200, "x" * 20_000,
))  # fmt: skip
FLAGS = ("-m", "--multirun", "--cfg", "job", "--resolve", "-x", "--", "--config-name", "--package")
KEYS = (
    "seed", "data.prefixes", "data.path", "model", "metric", "schedule", "schedule.targets", "schedule.bits",
    "sweep.delta", "memory.host", "components.include", "export.format", "hydra.run.dir", "hydra.mode", "hydra.job",
    "hydra.job.name", "hydra.sweep.subdir",
)  # fmt: skip


def odd_command_lines() -> st.SearchStrategy[list[str]]:
    """Arguments of `compressor run` that almost never make sense."""
    values = st.lists(PIECES, max_size=3).map("".join)
    overrides = st.tuples(st.sampled_from(KEYS), values).map("=".join) | st.lists(PIECES, max_size=5).map("".join)
    return st.lists(overrides | st.sampled_from(FLAGS), max_size=4)


def put_anywhere(data: object, draw: st.DrawFn) -> object:
    """The data with one marker at a random place of it; the marker is replaced in the text."""
    places: list[tuple[object, object]] = []
    whole = [copy.deepcopy(data)]
    stack: list[object] = [whole]
    while stack:
        value = stack.pop()
        for key in list(value) if isinstance(value, dict) else range(len(value)):  # type: ignore[arg-type, call-overload]
            places.append((value, key))
            if isinstance(value[key], dict | list):  # type: ignore[index]
                stack.append(value[key])  # type: ignore[index]
    parent, key = draw(st.sampled_from(places))
    parent[key] = "MARKER"  # type: ignore[index]
    return whole[0]


@st.composite
def damaged_texts(draw: st.DrawFn, data: object) -> bytes:
    """A JSON file that was changed: in bytes, or in one value."""
    content = json.dumps(data).encode()
    kinds = ("value", "value", "value", "deep", "long", "flip", "cut", "double", "bom", "nul", "bytes")
    kind = draw(st.sampled_from(kinds))
    if kind in ("value", "deep", "long"):
        brackets = (b"[" * DEEP + b"]" * DEEP, b'{"a":' * 300 + b"1" + b"}" * 300, b"[" * DEEP)
        texts = (b'"' + b"x" * LONG + b'"', b'{"' + b"x" * LONG + b'": 1}', b"[" + b"1," * DEEP + b"1]")
        values = {"deep": brackets, "long": texts, "value": tuple(map(str.encode, HUGE + ODD))}
        return json.dumps(put_anywhere(data, draw)).encode().replace(b'"MARKER"', draw(st.sampled_from(values[kind])))
    place = draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        return content[:place] + bytes([content[place] ^ 1 << draw(st.integers(0, 7))]) + content[place + 1 :]
    if kind == "cut":
        return content[:place]
    if kind == "double":
        key = draw(st.sampled_from(re.findall(rb'"\w+": ', content)))
        return content.replace(key, key + draw(st.sampled_from(ODD)).encode() + b", " + key, 1)
    if kind == "bom":
        return b"\xef\xbb\xbf" + content
    return content[:place] + (b"\0" if kind == "nul" else draw(st.binary(max_size=20))) + content[place:]


def try_out(work: Callable[[], object]) -> None:
    """Success, or one line of a CompressorError; never slow."""
    began = time.monotonic()
    try:
        work()
    except CompressorError as error:
        assert str(error) and len(str(error).splitlines()) == 1, str(error)
    assert time.monotonic() - began < SLOWEST


INDEX = "model.safetensors.index.json"
TEXTS = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", INDEX)


@st.composite
def damaged_weights(draw: st.DrawFn, content: bytes) -> bytes:
    """A file of weights with a changed header, a changed stretch of numbers, or without its end."""
    kind = draw(st.sampled_from(("header", "header", "numbers", "cut", "length")))
    if kind == "cut":
        return content[: draw(st.integers(0, len(content) - 1))]
    if kind == "length":
        return struct.pack("<Q", draw(st.integers(0, 2**64 - 1))) + content[8:]
    length = struct.unpack("<Q", content[:8])[0]
    if kind == "header":
        header = draw(damaged_texts(json.loads(content[8 : 8 + length])))
        return struct.pack("<Q", len(header)) + header + content[8 + length :]
    place = draw(st.integers(8 + length, len(content) - 1))
    stretch = random.Random(place).randbytes(draw(st.integers(1, 64)))
    return content[:place] + stretch + content[place + len(stretch) :]


@st.composite
def damaged_models(draw: st.DrawFn, folder: Path) -> tuple[str, bytes | None]:
    """The name of a file, and its new content; None where the file is missing."""
    weights = min(path.name for path in folder.glob("model-*.safetensors"))
    name = draw(st.sampled_from((*TEXTS, weights)))
    content = (folder / name).read_bytes()
    if draw(st.integers(0, 19)) == 0:
        return name, None
    return name, draw(damaged_weights(content) if name == weights else damaged_texts(json.loads(content)))


def damage_model(whole: Path, changed: Path, damage: tuple[str, bytes | None]) -> None:
    """Copy a model folder to `changed`, with one of `damaged_models`."""
    shutil.rmtree(changed, ignore_errors=True)
    shutil.copytree(whole, changed)
    name, content = damage
    (changed / name).unlink()
    if content is not None:
        (changed / name).write_bytes(content)
