"""Saved models are what was scored: packed integers against plain transformers in a process of its own."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import nn

from compressor import export, export_formats
from compressor.artifacts.run_record import Record
from compressor.commands.run import Run
from compressor.contracts import Compressor, Scheme, Strategy
from compressor.errors import CompressorError, ConfigError
from compressor.export import compressed_tensors, vllm_checks
from compressor.models import load_model
from compressor.settings import ComponentSettings, DType, ExportSettings, ModelSettings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Granularity, Int8
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.uniform import Uniform
from tests.support.exports import NEW, TOKENS, Shipped, draw_tokens, mix, read_by_transformers, treat
from tests.support.families import save_checkpoint
from tests.support.hostile_models import corrupt_file
from tests.support.runs import make_settings, run
from tests.support.slow import rarely_cases

FAMILIES = ("llama", "qwen3", "gemma3", "phi3", "gpt2", "mixtral")


NARROW = {
    "llama in bfloat16": ("llama", torch.bfloat16, DType.bfloat16),
    "float16 llama in bfloat16": ("llama", torch.float16, DType.bfloat16),
    "float32 llama in bfloat16": ("llama", torch.float32, DType.bfloat16),
    "float32 phi3 in float16": ("phi3", torch.float32, DType.float16),
}
"""Family, dtype of the checkpoint, dtype that is scored."""


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shipped]:
    """Every family with mixed treatments of a bfloat16 checkpoint, scored in float32; a Llama in other dtypes too."""
    home = tmp_path_factory.mktemp("shipped")
    made = {}
    wanted = {family: (family, torch.bfloat16, DType.float32) for family in FAMILIES}
    for case, (family, stored, dtype) in (wanted | NARROW).items():
        base = save_checkpoint(family, home / f"{case} base", stored, with_tokenizer=True)
        model = load_model(ModelSettings(path=str(base), dtype=dtype))
        quantized = treat(model, mix)
        made[case] = (model, quantized, export.save("auto", model, home / case, {}, {}, quantized))
    # As a user loads it, who says nothing of dtypes.
    said = read_by_transformers({exported.path: "" for _, _, exported in made.values()})
    return {case: Shipped(*parts, said[parts[2].path]) for case, parts in made.items()}


CASES = [*FAMILIES, *NARROW]
DENSE = ("gpt2", "mixtral")


@pytest.mark.parametrize("case", CASES)
def test_plain_transformers_gives_the_scored_logits_bit_for_bit(shipped: dict[str, Shipped], case: str) -> None:
    model, said = shipped[case].model, shipped[case].said
    scored = model.logits(draw_tokens(), TOKENS)
    assert torch.equal(said["logits"], scored)
    expected = model.network.generate(
        draw_tokens(), attention_mask=torch.ones(3, TOKENS, dtype=torch.long), max_new_tokens=NEW,
        min_new_tokens=NEW, do_sample=False,
    )  # fmt: skip
    assert torch.equal(said["generated"], expected)


@pytest.mark.parametrize("case", CASES)
def test_every_weight_comes_back_bit_for_bit(shipped: dict[str, Shipped], case: str) -> None:
    parameters, count = dict(shipped[case].model.network.named_parameters()), 0
    for name, weight in shipped[case].said.items():
        if name not in ("logits", "generated", "lm_head"):
            scored = parameters[f"{name}.weight"]
            assert torch.equal(weight.to(scored.dtype), scored) and torch.equal(scored.to(weight.dtype), weight), name
            count += 1
    assert count or case == "gpt2"


@pytest.mark.parametrize("case", CASES)
def test_integers_lie_packed_on_disk(shipped: dict[str, Shipped], case: str) -> None:
    one = shipped[case]
    stored, paths = one.stored, {id(module): path for path, module in one.model.network.named_modules()}
    assert bool(one.exported.packed) == (case not in DENSE)
    half = torch.float16 if one.model.dtype is torch.float16 else torch.bfloat16
    for name, weight_view in one.model.weight_views.items():
        path, matrix = paths[id(weight_view.owner)], one.quantized.get(name)
        if name not in one.exported.packed:
            assert f"{path}.weight_packed" not in stored
            continue
        assert matrix is not None and f"{path}.weight" not in stored
        matrix = matrix.without_zeros()
        assert matrix is not None
        packed, (out, width) = stored[f"{path}.weight_packed"], weight_view.parameter.shape
        assert (packed.dtype, packed.shape) == (torch.int32, (out, -(-width * matrix.integer_bits // 32)))
        assert stored[f"{path}.weight_scale"].dtype == matrix.scales.dtype == half
        assert stored[f"{path}.weight_shape"].tolist() == [out, width]
        assert f"{path}.weight_zero_point" not in stored
        size = 8 * sum(tensor.nbytes for key, tensor in stored.items() if key.startswith(f"{path}.weight_"))
        assert one.exported.bits[name] == size / weight_view.parameter.numel()


@pytest.mark.parametrize("case", [case for case in CASES if case not in DENSE])
def test_the_config_says_what_every_linear_module_is(shipped: dict[str, Shipped], case: str) -> None:
    """The rules of the format: a group for each scheme, all packed alike, each module in one group or ignored."""
    from compressed_tensors.quantization import QuantizationConfig

    one = shipped[case]
    config = one.config["quantization_config"]
    assert QuantizationConfig.model_validate(config).quantization_status == "compressed"
    assert (config["quant_method"], config["format"]) == ("compressed-tensors", "pack-quantized")
    groups = config["config_groups"].values()
    assert {group["format"] for group in groups} == {"pack-quantized"}
    arguments = [json.dumps(group["weights"], sort_keys=True) for group in groups]
    assert len(set(arguments)) == len(arguments) > 1
    targets = [target for group in groups for target in group["targets"]]
    assert len(set(targets)) == len(targets)
    for path, module in one.model.network.named_modules():
        if isinstance(module, nn.Linear):
            assert (path in targets) != (path in config["ignore"]), path
    assert "lm_head" in config["ignore"]
    # Nothing on disk that has two dimensions and is neither packed nor ignored: vLLM would look for its scheme.
    for name, tensor in one.stored.items():
        if name.endswith(".weight") and tensor.ndim == 2:
            path = name.removesuffix(".weight")
            assert path in config["ignore"], path


def test_each_treatment_is_packed_or_a_note_says_why_not(shipped: dict[str, Shipped]) -> None:
    llama, phi, gpt = (shipped[case] for case in ("llama", "phi3", "gpt2"))
    schemes = {
        name: matrix.scheme for name, matrix in llama.quantized.items() if matrix and name in llama.exported.packed
    }
    kinds = {(scheme.bits, scheme.strategy, scheme.symmetric) for scheme in schemes.values()}
    channel, group = Strategy.channel, Strategy.group
    assert kinds == {
        (8, channel, True), (4, group, True), (3, group, True), (4, group, False), (8, Strategy.tensor, True),
        (6, channel, True), (8, group, True),
    }  # fmt: skip
    said = " ".join(llama.exported.notes)
    assert "2 treated components are saved as dense weights" in said and "does not store integers, scales" in said
    assert "the group must divide the width" in said
    fused = {name for name in phi.exported.packed if ":" in name}
    assert fused == {name for name in phi.model.components if ":" in name and ".0." in name}
    assert "the parts of a fused matrix have different treatments; give them the same one" in " ".join(
        phi.exported.notes
    )
    assert gpt.exported.format == "dense" and "Conv1D" in " ".join(gpt.exported.notes)
    assert "quantization_config" not in gpt.config
    mixtral = shipped["mixtral"].exported
    assert mixtral.format == "dense" and any("takes no dense ones" in note for note in mixtral.notes)


def test_zero_points_cost_a_bit_until_transformers_reads_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path / "base", torch.bfloat16))))
    quantized = treat(model, lambda index, component: Int4(group=16, symmetric=False))
    bits = {}
    for reads in (False, True):
        monkeypatch.setattr(compressed_tensors, "reads_zeros", lambda reads=reads: reads)
        exported = export.save("auto", model, tmp_path / str(reads), {}, {}, quantized)
        assert exported.packed == set(model.components)
        bits[reads] = exported.bits["model.layers.0.mlp.down_proj"]
        assert any("one more bit for each weight" in note for note in exported.notes) != reads
        stored = safetensors.torch.load_file(exported.path / "model.safetensors")
        assert any(name.endswith("weight_zero_point") for name in stored) == reads
    # 5 bits in place of 4 and of 4 for each 16; a row of 48 is not a multiple of 32 bits.
    assert bits[False] - bits[True] == pytest.approx(1 - 4 / 16, abs=0.5)


def test_vllm_needs_one_scheme_for_what_it_joins(tmp_path: Path) -> None:
    """Its rule: q/k/v are one matrix product, and gate/up; either all are ignored or all have one scheme."""
    model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path))))
    scheme, other = Scheme(4, Strategy.group, 32, True), Scheme(8, Strategy.channel, 0, True)
    joined = {f"model.layers.0.self_attn.{leaf}": scheme for leaf in ("q_proj", "k_proj", "v_proj")}
    assert vllm_checks.find_split(model, joined) == [] and vllm_checks.describe_vllm_limits(model, joined) == ()
    for wrong in (joined | {"model.layers.0.self_attn.v_proj": other}, dict(list(joined.items())[:2])):
        assert vllm_checks.find_split(model, wrong) == ["model.layers.0.self_attn.q_proj"]
        assert "vLLM will refuse the saved model" in vllm_checks.describe_vllm_limits(model, wrong)[0]
    assert vllm_checks.find_split(model, {"model.layers.1.mlp.down_proj": other}) == []
    assert vllm_checks.find_split(model, {"model.layers.1.mlp.up_proj": other}) == ["model.layers.1.mlp.gate_proj"]
    odd = {"a": Scheme(3, Strategy.channel, 0, True), "b": Scheme(8, Strategy.tensor, 0, True), "c": scheme, "d": other}
    assert vllm_checks.find_unserved(odd | {"e": Scheme(4, Strategy.group, 16, True)}) == ["a", "b", "e"]


def test_parts_with_one_scale_each_stay_dense_for_that_reason(tmp_path: Path) -> None:
    model = load_model(ModelSettings(path=str(save_checkpoint("phi3", tmp_path / "base", torch.bfloat16))))
    quantized = treat(model, lambda index, component: Int8(granularity=Granularity.tensor))
    exported = export.save("auto", model, tmp_path / "model", {}, {}, quantized)
    fused = {name for name in model.components if ":" in name}
    assert fused and exported.packed == set(model.components) - fused
    (note,) = [note for note in exported.notes if "saved as dense" in note]
    assert note.startswith(f"{len(fused)} treated components") and "choose a scale per row" in note
    assert "different treatments" not in note


def test_a_format_asked_for_by_name_that_packs_nothing_is_told(tmp_path: Path) -> None:
    """Once, whether no treatment stores fewer bits, as zeros do not, or what is stored cannot be packed."""
    for family, compressor in (("llama", Magnitude()), ("llama", None), ("gpt2", Int8())):
        folder = tmp_path / f"{family} {compressor}"
        model = load_model(ModelSettings(path=str(save_checkpoint(family, folder / "base", torch.bfloat16))))
        quantized = treat(model, lambda index, component, compressor=compressor: compressor)
        assert bool(quantized) == (family == "gpt2")
        for form, count in (("compressed-tensors", 1), ("auto", int(bool(quantized)))):
            exported = export.save(form, model, folder / form, {}, {}, quantized)
            told = [note for note in exported.notes if "saved as dense weights" in note or "nothing is packed" in note]
            assert (exported.format, len(told)) == ("dense", count)


def test_dense_stays_dense(tmp_path: Path) -> None:
    model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path / "base", torch.bfloat16))))
    quantized = treat(model, lambda index, component: Int8())
    exported = export.save("dense", model, tmp_path / "model", {}, {}, quantized)
    assert (exported.format, exported.packed) == ("dense", frozenset())
    assert set(exported.bits.values()) == {32.0} and "14 tensors are saved in torch.float32" in exported.notes[0]


def test_nothing_is_packed_that_would_change_a_value(tmp_path: Path) -> None:
    """One weight of each matrix is one step from what its integers say."""
    base = save_checkpoint("llama", tmp_path / "base")
    model = load_model(ModelSettings(path=str(base)))
    quantized = treat(model, lambda index, component: Int4(group=16))
    for name in model.components:
        weight = model.read(name)
        weight[0, 0] = weight[0, 0].nextafter(torch.tensor(1.0))
        model.write(name, weight)
    exported = export.save("auto", model, tmp_path / "model", {}, {}, quantized)
    assert exported.format == "dense"
    assert "the reader of the format would round its values differently" in exported.notes[-1]


def test_the_lm_head_can_be_packed_and_a_tied_one_cannot(tmp_path: Path) -> None:
    for tied in (False, True):
        folder = tmp_path / str(tied)
        base = save_checkpoint("llama", folder / "base", torch.bfloat16, tie_word_embeddings=tied)
        chosen = ComponentSettings(include=["lm_head", "down_proj"])
        model = load_model(ModelSettings(path=str(base)), chosen)
        quantized = treat(model, lambda index, component: Int8())
        exported = export.save("auto", model, folder / "model", {}, {}, quantized)
        assert ("lm_head" in exported.packed) == (not tied)
        assert any("another module shares the weight" in note for note in exported.notes) == tied
        assert len(exported.packed) == 3 - tied
        told = [note for note in exported.notes if "`lm_head`" in note and "vLLM" in note]
        assert len(told) == 1 - tied and all('components.exclude=["lm_head"]' in note for note in told)


def test_the_head_is_named_as_the_family_names_it(tmp_path: Path) -> None:
    base = save_checkpoint("modernbert_decoder", tmp_path / "base", torch.bfloat16, tie_word_embeddings=False)
    model = load_model(ModelSettings(path=str(base)), ComponentSettings(include=["decoder", "Wo"]))
    quantized = treat(model, lambda index, component: Int8())
    for packed_too in (True, False):
        chosen = {name: matrix for name, matrix in quantized.items() if packed_too or name != "decoder"}
        exported = export.save("auto", model, tmp_path / str(packed_too), {}, {}, chosen)
        assert exported.packed == set(chosen)
        assert any('components.exclude=["decoder"]' in note for note in exported.notes) == packed_too


def run_with(folder: Path, compressor: Compressor, **settings: Any) -> Record:  # noqa: ANN401 - any of ExportSettings
    return run(folder, make_settings(Uniform(), compressor, export=ExportSettings(**settings)))


def test_a_run_ships_what_it_scored_and_counts_what_it_ships(tmp_path: Path) -> None:
    record = run_with(tmp_path, Rtn(bits=[4]), format="compressed-tensors")
    assert record.export is not None and record.final is not None and record.export.verification is not None
    assert (record.export.format, record.export.packed) == ("compressed-tensors", len(record.components))
    assert (record.export.verification.gap, record.export.verification.diverged) == (0, 0)
    # The integers take what the compressor said, with their scales; the rest is as it was.
    parameters = sum(component.parameters for component in record.components.values())
    packed = record.final.packed_bits_per_weight * parameters / 8
    rest = record.base["bytes"] - 2 * parameters
    assert record.final.bytes == pytest.approx(packed + rest, rel=0.01)
    on_disk = sum(path.stat().st_size for path in (tmp_path / "model").glob("*.safetensors"))
    assert record.final.bytes == on_disk
    for component in record.components.values():
        assert component.bits_per_weight == pytest.approx(component.packed_bits_per_weight, rel=0.01)


def corrupt_weights(folder: Path) -> None:
    corrupt_file(folder / "model.safetensors")


def cut_off(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def stretch_scales(folder: Path) -> None:
    """One scale half as large again, which loads without complaint."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    name = next(name for name in tensors if name.endswith("weight_scale"))
    tensors[name] = tensors[name] * 1.5
    safetensors.torch.save_file(tensors, path, {"format": "pt"})


@pytest.mark.parametrize(
    ("format", "damage", "said"),
    [
        ("compressed-tensors", stretch_scales, "differs by"),
        ("dense", cut_off, "cannot be loaded by transformers"),
        *rarely_cases([("dense", corrupt_weights, "differs by|gives no")]),
    ],
)
def test_a_folder_that_says_something_else_fails_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, damage: Callable[[Path], None], said: str
) -> None:
    verify = export.verify

    def damaged(exported: export.Exported, *arguments: Any) -> object:  # noqa: ANN401 - as verify takes them
        damage(exported.path)
        return verify(exported, *arguments)

    monkeypatch.setattr(export, "verify", damaged)
    with pytest.raises(CompressorError, match=said):
        run_with(tmp_path, Int8(), format=format)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["status"] == "failed" and "\n" not in report["error"]
    assert str(tmp_path / "model-unverified") in report["error"]
    assert not (tmp_path / "model").exists() and (tmp_path / "model-unverified" / "config.json").exists()


@pytest.mark.parametrize("form", ["auto", "compressed-tensors"])
def test_a_family_that_transformers_does_not_load_packed_is_dense_by_itself(tmp_path: Path, form: str) -> None:
    """What initialises GPTBigCode in transformers asks for a weight that a packed module has not."""
    base = save_checkpoint("gpt_bigcode", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    settings = make_settings(Uniform(), Int8(), model=ModelSettings(path=str(base)), export=ExportSettings(format=form))
    if form == "compressed-tensors":
        with pytest.raises(CompressorError, match=r"cannot be loaded by transformers .*has no attribute 'weight'"):
            run(tmp_path / "run", settings)
        return
    record = run(tmp_path / "run", settings)
    assert record.export is not None and record.export.verification is not None
    assert (record.export.format, record.export.packed, record.export.verification.gap) == ("dense", 0, 0)
    assert any("could not be used: the saved model cannot be loaded" in note for note in record.notes)


def test_a_missing_package_is_found_before_the_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_formats, "is_installed", lambda: False)
    monkeypatch.setattr(Run, "build_references", lambda self: pytest.fail("the run has begun"))
    with pytest.raises(ConfigError, match=re.escape("pip install 'compressor[export]'")) as caught:
        run_with(tmp_path, Int8(), format="compressed-tensors")
    assert "\n" not in str(caught.value)


def test_without_the_package_auto_is_dense_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "is_installed", lambda: False)
    record = run_with(tmp_path, Int8(), verify=False)
    assert record.export is not None and record.export.format == "dense"
    assert any("42 components are saved as dense" in note and "compressor[export]" in note for note in record.notes)


def test_unknown_formats_are_named() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown `export\.format` `compresed-tensors`; did you mean `compressed-ten"
    ):
        export_formats.check_format("compresed-tensors")
