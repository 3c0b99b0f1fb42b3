"""model.gguf holds what was scored: against the package's own reader, transformers, and llama.cpp itself."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import tokenizers
import torch
from hypothesis import given, settings, strategies
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from compressor import export
from compressor.commands.run import Run
from compressor.contracts import Component, Compressor, QuantizedMatrix
from compressor.errors import CompressorError, ConfigError
from compressor.export.gguf import blocks, vocabulary
from compressor.models import Model, load_model
from compressor.models.loading import quiet_loading
from compressor.settings import DType, ExportSettings, ModelSettings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Activations, Granularity, Int8
from compressor_plugins.quantization.nf4 import Nf4
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.uniform import Uniform
from tests.support.exports import draw_tokens, treat
from tests.support.families import SPECIAL_TOKENS, save_checkpoint
from tests.support.hostile_models import corrupt_file
from tests.support.runs import make_settings, run

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 128, "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
}
MIXED: tuple[Compressor | None, ...] = (
    Int8(), Int4(group=32), Rtn(bits=[3], group=32), Int4(group=32, symmetric=False), Nf4(group=32), Magnitude(),
    None, Int8(granularity=Granularity.tensor), Rtn(bits=[6], group=64), Int4(group=16), Int8(group=32),
)  # fmt: skip
"""Of every sort: as blocks of 8 and 4 bits, with a bit more for zero points, in other groups, pruned, left alone."""
TEXT = "once upon a time there was a little girl. she had a red ball and"


def make_model(folder: Path, family: str, stored: torch.dtype = torch.bfloat16, **overrides: Any) -> Model:  # noqa: ANN401
    base = save_checkpoint(family, folder, stored, with_tokenizer=True, **{**FAMILIES.get(family, {}), **overrides})
    return load_model(ModelSettings(path=str(base), dtype=DType.float32))


def read_by_transformers(path: Path, dtype: torch.dtype = torch.float32) -> Any:  # noqa: ANN401 - of any family
    with quiet_loading(torch.device("cpu")):
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype).eval()


def read_logits(network: Any, tokens: Tensor) -> Tensor:  # noqa: ANN401 - of any family
    with torch.inference_mode():
        logits: Tensor = network(tokens, use_cache=False).logits
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_transformers_reads_what_was_scored(tmp_path: Path, family: str) -> None:
    model = make_model(tmp_path / "base", family)
    quantized = treat(model, lambda index, component: MIXED[index % len(MIXED)])
    export.check_gguf(model)
    exported = export.save_gguf(model, tmp_path / "model.gguf", quantized)
    network, tokens = read_by_transformers(exported.path), draw_tokens()
    assert torch.equal(read_logits(network, tokens), model.logits(tokens, tokens.shape[1]))
    for name, weight in network.named_parameters():
        assert torch.equal(weight, model.network.get_parameter(name)), name
    assert not list(tmp_path.glob(".*")) and exported.bytes == exported.path.stat().st_size


def test_a_model_without_tokenizer_has_no_vocabulary(tmp_path: Path) -> None:
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16)
    model = load_model(ModelSettings(path=str(base)))
    export.check_gguf(model)
    exported, tokens = export.save_gguf(model, tmp_path / "model.gguf", {}), draw_tokens()
    network = read_by_transformers(exported.path)
    assert torch.equal(read_logits(network, tokens), model.logits(tokens, tokens.shape[1]))


def test_it_packs_what_fits_and_says_why_the_rest_does_not(tmp_path: Path) -> None:
    model = make_model(tmp_path / "base", "llama")
    quantized = treat(model, lambda index, component: MIXED[index % len(MIXED)])
    exported = export.save_gguf(model, tmp_path / "model.gguf", quantized)
    stored = {tensor.name: tensor.tensor_type.name for tensor in gguf.GGUFReader(exported.path).tensors}
    assert stored["blk.0.attn_q.weight"] == "Q8_0" and stored["blk.0.attn_k.weight"] == "Q4_0"
    assert stored["blk.0.attn_v.weight"] == "Q4_0"  # three bits
    assert stored["blk.0.attn_output.weight"] == "Q8_0"  # four, and one in place of zero points
    assert stored["blk.0.ffn_gate.weight"] == "F32"  # NF4, which bfloat16 does not hold
    assert stored["blk.0.ffn_down.weight"] == "BF16"  # left alone, and 48 wide
    assert stored["output_norm.weight"] == "F32"
    for name, component in model.components.items():
        assert (exported.bits[name] in (4.5, 8.5)) == (name in exported.packed), name
        assert component.shape[1] % 32 == 0 or name not in exported.packed
    assert any(blocks.UNEVEN in note and "are in model.gguf as dense weights" in note for note in exported.notes)
    assert any("llama.cpp rounds" in note for note in exported.notes)


layouts = strategies.tuples(
    strategies.integers(2, 8), strategies.sampled_from([32, 64, 96, 128]), strategies.booleans(), strategies.integers(0)
)


@settings(deadline=None, max_examples=60)
@given(layouts)
def test_blocks_give_integers_back_bit_for_bit(drawn: tuple[int, int, bool, int]) -> None:
    bits, group, zeros, seed = drawn
    generator, limit = torch.Generator().manual_seed(seed % 2**63), 2 ** (bits - 1)
    integers = torch.randint(-limit, limit, (6, 128), generator=generator, dtype=torch.int8)
    scales = torch.rand(6, -(-128 // group), generator=generator).add(0.01).bfloat16()
    found = torch.randint(-limit, limit, scales.shape, generator=generator, dtype=torch.int8)
    matrix = QuantizedMatrix(integers, scales, bits, group, torch.float32, found if zeros else None)
    scored = matrix.dense()
    stored = blocks.store_quantized(matrix, scored)
    if zeros and bits == 8:
        assert stored == blocks.NO_ZEROS
        return
    assert isinstance(stored, blocks.Stored)
    assert stored.kind.name == ("Q4_0" if bits + zeros <= 4 else "Q8_0")
    assert torch.equal(torch.from_numpy(gguf.dequantize(stored.content, stored.kind)), scored)


def test_what_blocks_do_not_hold_is_refused() -> None:
    integers = torch.ones(2, 64, dtype=torch.int8)
    uneven = QuantizedMatrix(integers, torch.ones(2, 4), 4, 16, torch.float32)
    assert blocks.store_quantized(uneven, uneven.dense()) == blocks.UNEVEN
    narrow = QuantizedMatrix(torch.ones(2, 40, dtype=torch.int8), torch.ones(2, 1), 8, 40, torch.float32)
    assert blocks.store_quantized(narrow, narrow.dense()) == blocks.UNEVEN
    for scale in (1e-9, 1e6, 1 + 2**-12):
        fine = QuantizedMatrix(integers, torch.full((2, 1), scale), 8, 64, torch.float32)
        assert blocks.store_quantized(fine, fine.dense()) == blocks.SCALES, scale
    whole = QuantizedMatrix(integers, torch.full((1, 1), 0.5), 8, 128, torch.float32)
    assert blocks.store_quantized(whole, whole.dense() + 1) == blocks.INEXACT


@pytest.mark.parametrize(
    ("family", "overrides", "said"),
    [
        ("gpt2", {}, "its family is `gpt2`, and only llama, mistral, qwen2, qwen3"),
        ("mistral", {"sliding_window": 8}, "sliding window"),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 0}, "sliding window"),
        ("llama", {"attention_bias": True}, "have biases"),
        ("qwen3", {"head_dim": 16}, "heads are 16 wide"),
        ("llama", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 2.0}}, "the type `linear`"),
    ],
)
def test_what_llama_cpp_would_not_run_alike_is_refused(
    tmp_path: Path, family: str, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        export.check_gguf(make_model(tmp_path / "base", family, **overrides))
    assert "\n" not in str(caught.value) and "leave it out" in str(caught.value)


def test_a_tokenizer_that_it_does_not_know_is_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "base", "llama")
    path = tmp_path / "base" / "tokenizer.json"
    described = json.loads(path.read_text())
    described["pre_tokenizer"] = {"type": "Whitespace"}
    path.write_text(json.dumps(described))
    with pytest.raises(ConfigError, match="neither byte-level BPE"):
        export.check_gguf(load_model(ModelSettings(path=str(model.folder))))


def test_a_missing_package_is_named_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else found(name, *rest))
    monkeypatch.setattr(Run, "build_references", lambda self: pytest.fail("the run has begun"))
    with pytest.raises(ConfigError, match=r"needs the package gguf: pip install 'compressor\[gguf\]'"):
        run(tmp_path, make_settings(Uniform(), Int8(), export=ExportSettings(gguf=True)))


def test_a_run_ships_both_and_checks_both(tmp_path: Path) -> None:
    compressor = Int8(activations=Activations.token)
    record = run(tmp_path, make_settings(Uniform(), compressor, export=ExportSettings(gguf=True)))
    assert record.export is not None and record.export.gguf is not None
    written = record.export.gguf
    assert written.packed == len(record.components) and written.bytes == (tmp_path / "model.gguf").stat().st_size
    assert written.verification is not None and written.verification.gap == 0
    assert record.export.verification is not None and record.export.verification.gap == 0
    # llama.cpp has its own way with inputs.
    assert any("model.gguf lacks a part of the scored model" in note for note in record.notes)
    assert any(
        "model.gguf, loaded again in a new process, gives not the scored logits" in note for note in record.notes
    )
    assert any(note.startswith("The saved model, loaded again") for note in record.notes)


def test_a_file_that_says_something_else_fails_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verify = export.verify

    def damaged(exported: export.Exported, *arguments: Any) -> object:  # noqa: ANN401 - as verify takes them
        if exported.path.is_file():
            corrupt_file(exported.path)
        return verify(exported, *arguments)

    monkeypatch.setattr(export, "verify", damaged)
    with pytest.raises(CompressorError, match=r"(differs by|gives no) .* left in .*model-unverified\.gguf"):
        run(tmp_path, make_settings(Uniform(), Int8(), export=ExportSettings(gguf=True)))
    assert (tmp_path / "model-unverified.gguf").exists() and not (tmp_path / "model.gguf").exists()


LLAMA_CPP = """
import json, sys, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.n_ctx, settings.warmup, settings.n_gpu_layers = sys.argv[1], 256, False, 0
settings.cpuparams.n_threads = 1
server, answers = xllamacpp.Server(settings), []
for text in sys.argv[2:]:
    answer = server.handle_completions({"prompt": text, "max_tokens": 24, "temperature": 0.0, "logprobs": 1})
    answers.append(answer if isinstance(answer, dict) else json.loads(answer))
print("ANSWERS", json.dumps(answers))
"""


def ask_llama_cpp(path: Path, *texts: str) -> list[dict[str, Any]]:
    """What llama.cpp answers to each text, in a process of its own."""
    pytest.importorskip("xllamacpp", reason="xllamacpp, a build of llama.cpp, is not installed")
    command = [sys.executable, "-c", LLAMA_CPP, str(path), *texts]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("ANSWERS "))
    answers: list[dict[str, Any]] = json.loads(line.removeprefix("ANSWERS "))
    return answers


def test_llama_cpp_goes_on_as_transformers_does(tmp_path: Path) -> None:
    check_continuations(load_model(ModelSettings()), tmp_path)


def test_llama_cpp_goes_on_by_trained_models(tmp_path: Path, trained_folder: Path) -> None:
    check_continuations(load_model(ModelSettings(path=str(trained_folder))), tmp_path)


def check_continuations(model: Model, folder: Path) -> None:
    """Byte-level BPE and SentencePiece's; every weight as it is, then integers, which llama.cpp multiplies otherwise.

    By that rounding a near tie may part the texts; the first tokens are alike.
    """
    for treated in (False, True) if model.stored_dtype is torch.bfloat16 else (False,):
        quantized = treat(model, pack) if treated else {}
        exported = export.save_gguf(model, folder / f"{treated}.gguf", quantized)
        assert bool(exported.packed) == treated
        (answer,) = ask_llama_cpp(exported.path, TEXT)
        said = [one["id"] for one in answer["choices"][0]["logprobs"]["content"]]
        alike = 6 if treated else 24
        assert len(said) == 24 and said[:alike] == continue_by_transformers(model, alike)


def pack(index: int, component: Component) -> Compressor | None:
    return Int8() if component.shape[1] % 32 == 0 else None


def continue_by_transformers(model: Model, tokens: int) -> list[int]:
    with quiet_loading(torch.device("cpu")):
        tokenizer = AutoTokenizer.from_pretrained(model.folder)
    read = torch.tensor([tokenizer(TEXT).input_ids])
    said = model.network.generate(
        read, attention_mask=torch.ones_like(read), max_new_tokens=tokens, do_sample=False, pad_token_id=0
    )
    found: list[int] = said[0, read.shape[1] :].tolist()
    return found


TEXTS = ("12 1234 123412", "don't DON'T we'll", "two\n\n  lines  \n a", "a--b !! (12)", " 12\t34 x1234y")


@pytest.mark.parametrize("split", vocabulary.SPLITS)
def test_llama_cpp_splits_text_alike(tmp_path: Path, split: str | None) -> None:
    """By every expression that has a name: as many tokens of texts whose digits, marks and blanks could merge."""
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16)
    save_mergeable(base, split)
    model = load_model(ModelSettings(path=str(base)))
    export.check_gguf(model)
    export.save_gguf(model, tmp_path / "model.gguf", {})
    assert model.tokenizer is not None
    counts = [len(model.tokenizer(text).input_ids) for text in TEXTS]
    assert [one["usage"]["prompt_tokens"] for one in ask_llama_cpp(tmp_path / "model.gguf", *TEXTS)] == counts


def test_the_texts_tell_the_expressions_apart(tmp_path: Path) -> None:
    found = set()
    for number, split in enumerate(vocabulary.SPLITS):
        save_mergeable(tmp_path / str(number), split)
        with quiet_loading(torch.device("cpu")):
            tokenizer = AutoTokenizer.from_pretrained(tmp_path / str(number))
        found.add(tuple(len(tokenizer(text).input_ids) for text in TEXTS))
    assert len(found) == len(vocabulary.SPLITS)


def save_mergeable(folder: Path, split: str | None) -> None:
    """A byte-level tokenizer of 160 tokens that joins whatever the expression `split` leaves together."""
    characters = ["Ċ", "ĉ", "Ġ", *(chr(code) for code in range(33, 127))]
    merges = [
        ("1", "2"), ("3", "4"), ("12", "34"), ("'", "t"), ("n", "'"), ("n", "'t"), ("o", "n"), ("'", "l"), ("'l", "l"),
        ("Ġ", "Ġ"), ("Ċ", "Ċ"), ("ĠĠ", "Ċ"), ("-", "-"), ("Ġ", "!"), ("!", "!"), ("Ġ", "1"), ("Ġ", "12"), ("'", "T"),
        ("x", "1"), ("ĉ", "3"), ("Ċ", "Ġ"), ("2", "1"), ("(", "1"), (")", "Ġ"), ("4", "1"), ("s", "Ġ"), ("Ġ", "l"),
    ]  # fmt: skip
    tokens = [*SPECIAL_TOKENS, *characters, *dict.fromkeys(first + second for first, second in merges)]
    model = tokenizers.models.BPE(vocab={token: number for number, token in enumerate(tokens)}, merges=merges)
    backend = tokenizers.Tokenizer(model)
    levels = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    if split is not None:
        words = tokenizers.pre_tokenizers.Split(tokenizers.Regex(split), "isolated")
        levels = tokenizers.pre_tokenizers.Sequence([words, levels])
    backend.pre_tokenizer, backend.decoder = levels, tokenizers.decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.save_pretrained(folder)


PLAIN, TOOLS = "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}", "{{ tools }}"
NAMED = [{"name": "default", "template": PLAIN}, {"name": "tool_use", "template": TOOLS}]
TEMPLATES: dict[str, tuple[dict[str, Any], dict[str, str], dict[str, str]]] = {
    "in the config alone": ({"chat_template": PLAIN}, {}, {"": PLAIN}),
    "in a file alone": ({}, {"chat_template.jinja": PLAIN}, {"": PLAIN}),
    "the file counts": ({"chat_template": TOOLS}, {"chat_template.jinja": PLAIN}, {"": PLAIN}),
    "named in the config": ({"chat_template": NAMED}, {}, {"": PLAIN, ".tool_use": TOOLS}),
    "named in files": (
        {},
        {"chat_template.jinja": PLAIN, "additional_chat_templates/tool_use.jinja": TOOLS},
        {"": PLAIN, ".tool_use": TOOLS},
    ),
    "none": ({}, {}, {}),
}
"""Where the base has its template -> entries of tokenizer_config.json, files, and templates by their key in GGUF."""


@pytest.mark.parametrize("place", TEMPLATES)
def test_a_chat_template_is_in_the_file_wherever_the_base_has_it(place: str, tmp_path: Path) -> None:
    entries, files, expected = TEMPLATES[place]
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    config = base / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | entries))
    for name, text in files.items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    model = load_model(ModelSettings(path=str(base)))
    exported = export.save_gguf(model, tmp_path / "model.gguf", {})
    fields, key = gguf.GGUFReader(exported.path).fields, "tokenizer.chat_template"
    found = {name.removeprefix(key): field.contents() for name, field in fields.items() if name.startswith(key)}
    found.pop("s", None)  # the list of names
    assert found == expected
    # The folder beside it has the same ones for transformers.
    export.save_dense(model, tmp_path / "model", {}, {})
    kept = AutoTokenizer.from_pretrained(tmp_path / "model").chat_template
    named = kept if isinstance(kept, dict) else {"default": kept} if kept else {}
    assert {"" if name == "default" else f".{name}": text for name, text in named.items()} == expected
