"""What an export takes on disk is known before it is made, and a budget of bytes is kept by what lies there."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from compressor import export
from compressor.artifacts.run_record import Record
from compressor.commands.run import Run, execute
from compressor.contracts import Compressor, Context, QuantizedMatrix
from compressor.errors import CompressorError, ConfigError
from compressor.export import FileSizes, compressed_tensors
from compressor.models import Model, load_model
from compressor.plugins import installed
from compressor.search.fused_components import fuse, name_matrix, name_unit
from compressor.settings import (
    ComponentSettings,
    DataSettings,
    DType,
    ExportSettings,
    ModelSettings,
    Settings,
    TrackingSettings,
)
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.hqq import Hqq
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Granularity, Int8
from compressor_plugins.quantization.nf4 import Nf4
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.budget.budget import Budget
from tests.support.families import FAMILIES, ODDITIES, each, save_checkpoint

TREATMENTS: dict[str, list[Compressor | None]] = {
    "one": [Int4(group=16)],
    "zero points": [Int4(group=16, symmetric=False), Rtn(bits=[8], group=16)],
    "mixed": [
        Int8(), Int4(group=16), None, Rtn(bits=[3], group=16), Nf4(group=16), Magnitude(), Int4(group=20),
        Int8(granularity=Granularity.tensor), Rtn(bits=[6], group=64), Hqq(group=16),
    ],
    "nothing that can be packed": [None, Nf4(group=16), Magnitude()],
}  # fmt: skip
DTYPES = {
    "wide": (torch.float32, DType.float32),
    "widened": (torch.bfloat16, DType.float32),
    "narrow": (torch.bfloat16, DType.bfloat16),
    "narrowed": (torch.float32, DType.bfloat16),
    "other": (torch.float16, DType.bfloat16),
}
PACKABLE = ("llama", "qwen2", "gemma3", "phi3", "gpt_neox", "opt", "bloom")


def treat(
    model: Model, compressors: list[Compressor | None], sizes: FileSizes
) -> tuple[dict[str, QuantizedMatrix | None], float]:
    """Put treatments on the model, one for each whole matrix; what `export.save` takes, and the bytes to expect."""
    quantized, expected = dict[str, QuantizedMatrix | None](), 8 * sizes.rest
    matrices = list(dict.fromkeys(name_matrix(component) for component in model.components.values()))
    for name, component in model.components.items():
        compressor = compressors[matrices.index(name_matrix(component)) % len(compressors)]
        if compressor is None:
            expected += sizes.count_bits(name, model.read(name))
            continue
        offer = compressor.offer(component)
        amount = offer.largest if offer.levels else 0.5
        made = compressor.compress(model.read(name), amount, Context(component))
        model.write(name, made.dense())
        expected += sizes.count_bits(name, made.dense(), made.bits, made.quantized)
        if made.bits < component.parameters * component.stored_bits:
            quantized[name] = made.quantized
    return quantized, expected / 8


def check_sizes(base: Path, folder: Path, dtype: DType, compressors: list[Compressor | None], **chosen: Any) -> None:  # noqa: ANN401
    model = load_model(ModelSettings(path=str(base), dtype=dtype), ComponentSettings(**chosen))
    sizes = FileSizes(model, "auto")
    assert sizes.packs
    untreated = sizes.rest + sum(sizes.count_bits(name, model.read(name)) for name in model.components) / 8
    assert model.stored_bytes <= untreated <= 1.01 * model.stored_bytes
    quantized, expected = treat(model, compressors, sizes)
    exported = export.save("auto", model, folder, {}, {}, quantized)
    on_disk = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert exported.bytes == on_disk <= expected <= 1.01 * on_disk


@pytest.mark.parametrize("treatments", TREATMENTS)
@pytest.mark.parametrize("family", PACKABLE)
def test_sizes_are_those_on_disk(family: str, treatments: str, tmp_path: Path) -> None:
    base = save_checkpoint(family, tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    check_sizes(base, tmp_path / "model", DType.float32, TREATMENTS[treatments])


@pytest.mark.parametrize("dtypes", DTYPES)
def test_every_pair_of_dtypes_is_counted_as_it_is_saved(dtypes: str, tmp_path: Path) -> None:
    stored, scored = DTYPES[dtypes]
    base = save_checkpoint("llama", tmp_path / "base", stored)
    check_sizes(base, tmp_path / "model", scored, TREATMENTS["mixed"])


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_and_heads_are_counted_once(tied: bool, tmp_path: Path) -> None:
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, tie_word_embeddings=tied)
    for number, include in enumerate((["lm_head", "down_proj"], ["embed", "q_proj"])):
        check_sizes(base, tmp_path / str(number), DType.float32, [Int8()], include=include)


def test_parts_that_are_left_out_keep_their_matrix_dense(tmp_path: Path) -> None:
    base = save_checkpoint("phi3", tmp_path / "base", torch.bfloat16)
    check_sizes(base, tmp_path / "model", DType.float32, [Int8()], exclude=["k$"])


def test_parts_with_one_scale_each_are_counted_dense(tmp_path: Path) -> None:
    base = save_checkpoint("phi3", tmp_path / "base", torch.bfloat16)
    check_sizes(base, tmp_path / "model", DType.float32, [Int8(granularity=Granularity.tensor)])


def test_zero_points_that_can_be_loaded_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a package that loads them they are saved as they are, and then nothing is a bit wider."""
    model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path / "base", torch.bfloat16))))
    name, component = next(iter(model.components.items()))
    made = Int4(group=16, symmetric=False).compress(model.read(name), 0.75, Context(component))
    found = {}
    for reads in (False, True):
        monkeypatch.setattr(compressed_tensors, "reads_zeros", lambda reads=reads: reads)
        found[reads] = FileSizes(model, "auto").count_bits(name, made.dense(), made.bits, made.quantized)
    out, width = component.shape
    wider, zeros = out * (-(-5 * width // 32) - 4 * width // 32) * 32, 32 * -(-out * 4 // 32) * (width // 16)
    assert 0 <= found[True] - found[False] + wider - zeros <= 8 * 130  # and what a header says of the zero points


@pytest.mark.parametrize("family", ["gpt2", "mixtral"])
def test_where_nothing_can_be_packed_no_budget_of_bytes_is_taken(family: str, tmp_path: Path) -> None:
    base = save_checkpoint(family, tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    with pytest.raises(ConfigError, match=r"`schedule.bytes` needs an export that packs weights, and it can pack no"):
        run(tmp_path / "run", base, 10**6, [Int8()])


def test_without_the_package_nothing_can_be_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path / "base"))))
    assert FileSizes(model, "auto").packs
    monkeypatch.setattr("compressor.export.file_sizes.is_installed", lambda: False)
    assert not FileSizes(model, "auto").packs


@pytest.mark.parametrize("family", each(FAMILIES | ODDITIES))
def test_parts_of_a_matrix_are_never_in_two_units(family: str, tmp_path: Path) -> None:
    """What is decided together has whole matrices, and parts of one parameter have one name before the colon."""
    model = load_model(ModelSettings(path=str(save_checkpoint(family, tmp_path / "base"))))
    for unit in (name_unit, name_matrix):
        owner = {
            member.name: name
            for name, members in fuse(model.components.values(), unit).units.items()
            for member in members
        }
        for parameter in {
            id(weight_view.parameter): weight_view.parameter for weight_view in model.weight_views.values()
        }.values():
            assert (
                len(
                    {
                        owner[name]
                        for name, weight_view in model.weight_views.items()
                        if weight_view.parameter is parameter
                    }
                )
                == 1
            )


def run(
    folder: Path,
    base: Path,
    size: int,
    compressors: list[Compressor],
    form: str = "auto",
    **options: Any,  # noqa: ANN401 - any of Budget and Settings
) -> Record:
    folder.mkdir()
    fuse = options.pop("fuse", None)
    settings = Settings(
        metric={"kl": Kl()},
        compressor={compressor.name: compressor for compressor in compressors},
        schedule=options.pop("schedule", None) or Budget(bytes=size, **{"corrections": 1, **options}),
        model=ModelSettings(path=str(base)),
        data=DataSettings(prefixes=4, proof_prefixes=2, prefix_tokens=4, continuation_tokens=6),
        components=ComponentSettings(fuse=fuse),
        tracking=TrackingSettings(backend="none"),
        export=ExportSettings(format=form, verify=False),
    )
    return execute(settings, installed(), folder, {}, "compressor run")


CHOICES: dict[str, list[Compressor]] = {
    "integers": [Int8(), Int4(group=16)],
    "zero points": [Rtn(bits=[2, 3, 8], group=16), Int4(group=16, symmetric=False)],
    "all": [Magnitude(), Int8(granularity=Granularity.tensor), Int4(group=16), Nf4(group=16), Hqq(group=16)],
}
SMALLEST = r"the budget of (\d+) bytes is out of reach, the smallest is (\d+) bytes; raise `schedule.bytes`"


def draw_cases() -> Iterator[Any]:
    """Every family with every choice of compressors; one choice of Llama always runs."""
    for place, family in enumerate(("llama", "phi3", "gpt_neox", "qwen2")):
        for number, choice in enumerate(CHOICES):
            often = family == "llama" and number == place % len(CHOICES)
            marks = () if often else pytest.mark.slow
            yield pytest.param(family, choice, bool(number % 2), number, id=f"{family} {choice}", marks=marks)


@pytest.mark.parametrize(("family", "choice", "fuse", "seed"), list(draw_cases()))
def test_no_run_exceeds_its_budget(family: str, choice: str, fuse: bool, seed: int, tmp_path: Path) -> None:
    base = save_checkpoint(family, tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    with pytest.raises(ConfigError, match=SMALLEST) as caught:
        run(tmp_path / "too small", base, 1000, CHOICES[choice], fuse=fuse)
    found = re.search(SMALLEST, str(caught.value))
    assert found is not None
    smallest, largest = int(found[2]), (base / "model.safetensors").stat().st_size
    drawn = random.Random(f"{family} {choice} {seed}")
    sizes = [smallest, *(drawn.randint(smallest, largest) for _ in range(3))]
    taken = []
    for size in sizes:
        record = run(tmp_path / str(size), base, size, CHOICES[choice], fuse=fuse)
        on_disk = sum(path.stat().st_size for path in (tmp_path / str(size) / "model").glob("*.safetensors"))
        report = json.loads((tmp_path / str(size) / "report.json").read_text())
        assert record.final is not None and record.final.bytes == report["final"]["bytes"] == on_disk <= size
        taken.append(on_disk)
    assert taken[0] > 0.99 * smallest
    assert any(component["compressor"] for component in report["components"].values())


def test_one_byte_less_than_the_smallest_is_too_little(tmp_path: Path) -> None:
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    with pytest.raises(ConfigError, match=SMALLEST) as caught:
        run(tmp_path / "first", base, 1, [Int4(group=16)])
    found = re.search(SMALLEST, str(caught.value))
    assert found is not None
    with pytest.raises(ConfigError, match=SMALLEST):
        run(tmp_path / "second", base, int(found[2]) - 1, [Int4(group=16)])
    record = run(tmp_path / "third", base, int(found[2]), [Int4(group=16)])
    assert {component.compressor for component in record.components.values()} == {"int4"}
    assert record.final is not None and 0.99 * int(found[2]) <= record.final.bytes <= int(found[2])


def test_more_bytes_are_used_where_they_help(tmp_path: Path) -> None:
    """What a budget leaves is less than the step of its largest matrix."""
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    full = (base / "model.safetensors").stat().st_size
    for share in (0.75, 0.9):
        size = int(share * full)
        record = run(tmp_path / str(size), base, size, [Int8(), Int4(group=16)], corrections=0)
        assert record.final is not None
        largest = max(2 * component.parameters for component in record.components.values())
        assert size - largest < record.final.bytes <= size


def test_a_family_that_cannot_be_loaded_packed_fails_rather_than_exceed(tmp_path: Path) -> None:
    base = save_checkpoint("gpt_bigcode", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    size = int(0.9 * (base / "model.safetensors").stat().st_size)
    settings = Settings(
        metric={"kl": Kl()}, compressor={"int8": Int8()}, schedule=Budget(bytes=size, corrections=0),
        model=ModelSettings(path=str(base)), tracking=TrackingSettings(backend="none"),
        data=DataSettings(prefixes=2, proof_prefixes=2, prefix_tokens=4, continuation_tokens=6),
    )  # fmt: skip
    (tmp_path / "run").mkdir()
    with pytest.raises(CompressorError, match="cannot be loaded by transformers"):
        execute(settings, installed(), tmp_path / "run", {}, "compressor run")


def test_files_that_are_larger_than_they_may_be_fail_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    save = Run.save

    def pad(self: Run, form: str) -> export.Exported:
        exported = save(self, form)
        object.__setattr__(exported, "bytes", 10**9)
        return exported

    monkeypatch.setattr(Run, "save", pad)
    with pytest.raises(CompressorError, match=r"takes 1000000000 bytes, more than the 300000 of `schedule.bytes`"):
        run(tmp_path / "run", base, 300_000, [Int8()])
