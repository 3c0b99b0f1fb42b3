"""int8 × int8 and LLM.int8() from weights and inputs to what is scored, saved, loaded again and told."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compressor import export
from compressor.artifacts.run_record import Record, VerificationRecord
from compressor.compression.apply import make_replacement
from compressor.contracts import Component, Compressor, Context, Scheme, Strategy, TokenRounding, Treatment
from compressor.errors import ConfigError, PluginError
from compressor.export import vllm_checks
from compressor.models import Model, load_model
from compressor.models.architectures import is_linear
from compressor.settings import ComponentSettings, DType, ExportSettings, ModelSettings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int8 import Activations, Int8
from compressor_plugins.quantization.llm_int8 import LlmInt8, MixedInputs
from compressor_plugins.schedules.budget.budget import Budget
from compressor_plugins.schedules.uniform import Uniform
from tests.support import forecasts
from tests.support.estimates import make_treatments
from tests.support.exports import NEW, TOKEN, TOKENS, Shipped, choose, draw_tokens, read_by_transformers, treat
from tests.support.families import save_checkpoint
from tests.support.runs import make_settings, run
from tests.support.slow import rarely_cases


def component_of(weight: Tensor, stored_bits: int = 16) -> Component:
    return Component("model.layers.0.mlp.up_proj", "up", 0, (weight.shape[0], weight.shape[1]), stored_bits)


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shipped]:
    home, made = tmp_path_factory.mktemp("shipped"), {}
    for family, dtype in (
        ("llama", DType.float32), ("llama", DType.bfloat16), ("qwen3", DType.float32), ("phi3", DType.float32),
        ("opt", DType.float32), ("gpt2", DType.float32),
    ):  # fmt: skip
        case = f"{family} in {dtype.value}"
        base = save_checkpoint(family, home / f"{case} base", torch.bfloat16, with_tokenizer=True)
        model = load_model(ModelSettings(path=str(base), dtype=dtype))
        quantized = treat(model, choose)
        made[case] = (model, quantized, export.save("auto", model, home / case, {}, {}, quantized))
    said = read_by_transformers({exported.path: "" for _, _, exported in made.values()})
    return {case: Shipped(*parts, said[parts[2].path]) for case, parts in made.items()}


WHOLE = ["llama in float32", "llama in bfloat16", "qwen3 in float32"]


@pytest.mark.parametrize("case", WHOLE)
def test_plain_transformers_gives_the_scored_logits_bit_for_bit(shipped: dict[str, Shipped], case: str) -> None:
    """Inputs are rounded there as they were when the model was scored."""
    one = shipped[case]
    assert one.exported.format == "compressed-tensors" and one.exported.treated == {*one.model.input_transforms.names}
    assert len(one.exported.treated) > 5 and not export.list_untransformed(one.model, one.exported)
    assert torch.equal(one.said["logits"], one.model.logits(draw_tokens(), TOKENS))
    expected = one.model.network.generate(
        draw_tokens(), attention_mask=torch.ones(3, TOKENS, dtype=torch.long), max_new_tokens=NEW,
        min_new_tokens=NEW, do_sample=False,
    )  # fmt: skip
    assert torch.equal(one.said["generated"], expected)
    with one.model.input_transforms.only([]):
        assert not torch.equal(one.said["logits"], one.model.logits(draw_tokens(), TOKENS))


@pytest.mark.parametrize("case", ["phi3 in float32", "opt in float32", "gpt2 in float32"])
def test_what_cannot_be_shipped_is_said_and_not_compared(shipped: dict[str, Shipped], case: str) -> None:
    """Parts of a fused matrix that differ, tokens in one list, and Conv1D: their inputs are not treated there."""
    one = shipped[case]
    lacking = export.list_untransformed(one.model, one.exported)
    assert lacking and bool(one.exported.treated) == (case != "gpt2 in float32")
    (note,) = (note for note in one.exported.notes if "lacks a part of the scored model" in note)
    assert f"{len(lacking)} components, `{lacking[0]}` first, transformed their inputs" in note
    scored = one.model.logits(draw_tokens(), TOKENS)
    with one.model.input_transforms.only(one.exported.treated):
        assert torch.equal(one.said["logits"], one.model.logits(draw_tokens(), TOKENS))
    assert not torch.equal(one.said["logits"], scored)
    assert torch.equal(scored, one.model.logits(draw_tokens(), TOKENS))
    tokens = torch.cat([draw_tokens(), draw_tokens()], dim=1)
    found = export.verify(one.exported, one.model, tokens, TOKENS, False)
    assert found is not None and found.gap == 0
    assert any("have no sequence dimension" in note for note in one.exported.notes) == case.startswith("opt")


def test_bytes_lie_on_disk_where_inputs_are_integers(shipped: dict[str, Shipped]) -> None:
    """The rules of the format, and the sizes that are reported."""
    from compressed_tensors.quantization import QuantizationConfig

    one = shipped["llama in float32"]
    config = one.config["quantization_config"]
    assert QuantizationConfig.model_validate(config).format == "mixed-precision"
    groups = config["config_groups"].values()
    for group in groups:
        inputs = group["input_activations"]
        assert group["format"] == ("pack-quantized" if inputs is None else "int-quantized")
        if inputs is not None:
            kept = (inputs["num_bits"], inputs["type"], inputs["strategy"], inputs["dynamic"], inputs["symmetric"])
            assert kept == (8, "int", "token", True, True)
    targets = {target: group for group in groups for target in group["targets"]}
    for path, module in one.model.network.named_modules():
        if isinstance(module, nn.Linear):
            assert (path in targets) != (path in config["ignore"]), path
    for name in one.exported.packed:
        stored = {key: tensor for key, tensor in one.stored.items() if key.startswith(f"{name}.")}
        assert ("input_activations" in targets[name]) and (f"{name}.weight" in stored) == (name in one.exported.treated)
        assert one.exported.bits[name] == 8 * sum(t.nbytes for t in stored.values()) / one.model.read(name).numel()
        matrix = one.quantized[name]
        if name in one.exported.treated and matrix is not None:
            assert torch.equal(stored[f"{name}.weight"], matrix.integers)


def test_a_model_of_one_format_is_called_by_its_name(tmp_path: Path) -> None:
    model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path / "base", torch.bfloat16))))
    quantized = treat(model, lambda index, component: Int8(activations=TOKEN))
    exported = export.save("auto", model, tmp_path / "model", {}, {}, quantized)
    config = json.loads((exported.path / "config.json").read_text())["quantization_config"]
    assert config["format"] == "int-quantized" and len(config["config_groups"]) == 1
    assert all(note.startswith("Copied from the base") for note in exported.notes)
    assert exported.packed == exported.treated == {*model.components}


def test_vllm_takes_integer_inputs_with_a_scale_for_each_row_or_matrix() -> None:
    inputs, kinds = TokenRounding(), [(8, s, 0) for s in (Strategy.channel, Strategy.tensor)]
    served = {str(kind): Scheme(*kind, True, inputs) for kind in kinds}
    other = {"group": Scheme(8, Strategy.group, 32, True, inputs), "int4": Scheme(4, Strategy.channel, 0, True, inputs)}
    other |= {"odd": Scheme(8, Strategy.channel, 0, True, TokenRounding(4))}
    assert vllm_checks.find_unserved(served | other) == ["group", "int4", "odd"]


def run_with(folder: Path, compressor: Compressor, **settings: Any) -> Record:  # noqa: ANN401 - any of ExportSettings
    return run(folder, make_settings(Uniform(), compressor, export=ExportSettings(**settings)))


def test_a_run_ships_the_integer_inputs_that_it_scored(tmp_path: Path) -> None:
    plain, treated = (run_with(tmp_path / a.name, Int8(activations=a)) for a in (Activations.none, TOKEN))
    assert treated.export is not None and treated.export.verification is not None
    assert (treated.export.format, treated.export.packed) == ("compressed-tensors", len(treated.components))
    assert treated.export.verification.gap == 0
    assert any("gives the scored logits" in note for note in treated.notes)
    assert not any("lacks a part of the scored model" in note for note in treated.notes)
    assert plain.final is not None and treated.final is not None
    assert plain.final.packed_bits_per_weight == treated.final.packed_bits_per_weight
    assert plain.final.scores["kl"].mean < treated.final.scores["kl"].mean
    plan = json.loads((tmp_path / "token" / "plan.json").read_text())
    assert {treatment["options"]["activations"] for treatment in plan.values()} == {"token"}


@pytest.mark.parametrize(
    ("compressor", "form"), [(LlmInt8(0.5), "auto"), *rarely_cases([(Int8(activations=TOKEN), "dense")])]
)
def test_a_dense_run_says_that_its_inputs_are_not_shipped(compressor: Compressor, form: str, tmp_path: Path) -> None:
    record = run_with(tmp_path, compressor, format=form)
    assert record.export is not None and record.export.verification is not None
    assert (record.export.format, record.export.verification.gap) == ("dense", 0)
    assert any("The saved model lacks a part of the scored model: 42 components" in note for note in record.notes)
    assert any("gives not the scored logits, but those of the scored weights, of" in note for note in record.notes)


def test_an_unverified_half_is_not_called_the_scored_one() -> None:
    told = export.describe_verification("It", VerificationRecord(2, 1e-5, 0.002, 0, 3.0), is_whole=False)
    assert "gives not the scored logits, but those of the scored weights, of 2 proof prefixes up to 1e-05" in told


def mixed_by_hand(weight: Tensor, inputs: Tensor, kept: list[int]) -> Tensor:
    """LLM.int8() in float64, number by number: products of integers, and of what is kept beside them."""
    width, answer = weight.shape[1], torch.zeros(len(inputs), len(weight), dtype=torch.float64)
    others = [j for j in range(width) if j not in kept]
    for t, x in enumerate(inputs.tolist()):
        largest = max((abs(x[j]) for j in others), default=0.0)
        for r, w in enumerate(weight.tolist()):
            total = sum(x[j] * w[j] for j in kept)
            scale = max((abs(w[j]) for j in others), default=0.0)
            if largest and scale:
                integers = sum(round(127 * x[j] / largest) * round(127 * w[j] / scale) for j in others)
                total += integers * (largest / 127) * (scale / 127)
            answer[t, r] = total
    return answer


@pytest.mark.parametrize("threshold", [0.8, 3.0, 6.0, 1e9, 1e-9])
def test_mixed_products_are_those_of_an_explicit_loop(threshold: float) -> None:
    draw = torch.Generator().manual_seed(int(threshold))
    weight, inputs = torch.randn(7, 30, generator=draw), torch.randn(12, 30, generator=draw)
    inputs[:, 4] *= 20
    inputs[3, 9] = -7.0
    inputs[5] = 0
    absmax = inputs.abs().amax(0)
    context = Context(component_of(weight, 32), calibration={"absmax": absmax})
    made = LlmInt8(threshold).compress(weight, 0.75, context)
    kept = [j for j in range(30) if absmax[j] >= threshold]
    assert made.kept.nonzero().flatten().tolist() == kept
    assert (4 in kept) == (threshold < 20) and (9 in kept) == (threshold <= 7)
    treated = made.input_transform(inputs)
    assert torch.equal(treated[:, kept], inputs[:, kept])
    # The weights that are kept are halves: of those, not of what they were.
    halves = weight.clone()
    halves[:, kept] = made.columns.float()
    expected = mixed_by_hand(halves, inputs, kept)
    found = treated.double() @ made.dense().double().T
    assert (found - expected).abs().max() <= 1e-6 * expected.abs().max().clamp(min=1)
    out, columns = weight.shape[0], len(kept)
    assert made.bits == 8 * out * (30 - columns) + 32 * out + 16 * out * columns + 32 * columns


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_kept_columns_of_sixteen_bits_stay_bit_for_bit(dtype: torch.dtype) -> None:
    """Also where the checkpoint was widened on loading."""
    weight = (torch.randn(6, 20, generator=torch.Generator().manual_seed(0)) ** 9).to(dtype)
    absmax = torch.arange(20.0)
    for given in (weight, weight.float()):
        made = LlmInt8(12.0).compress(given, 0.5, Context(component_of(given), calibration={"absmax": absmax}))
        assert torch.equal(made.dense()[:, 12:], given[:, 12:]) and made.columns.dtype.itemsize == 2
        assert not torch.equal(made.dense()[:, :12], given[:, :12])


def test_weights_beyond_halves_stay_finite() -> None:
    weight = torch.tensor([[3.4e38, -3.4e38, 1.0], [1e-40, 7e4, 2.0]])
    made = LlmInt8().compress(
        weight, 0.75, Context(component_of(weight, 32), calibration={"absmax": torch.ones(3) * 9})
    )
    assert made.dense().isfinite().all() and made.columns.dtype is torch.bfloat16


@pytest.mark.slow
def test_outliers_that_a_run_finds_are_kept(tmp_path: Path) -> None:
    """On a trained model some features have outliers by a low threshold, and keeping them costs bits and saves KL."""
    records = [run_with(tmp_path / str(t), LlmInt8(t), verify=False) for t in (1e9, 1.0)]
    finals = [record.final for record in records]
    assert finals[0] is not None and finals[1] is not None
    assert finals[0].packed_bits_per_weight < finals[1].packed_bits_per_weight
    assert finals[0].scores["kl"].mean > finals[1].scores["kl"].mean


FEW = ComponentSettings(include=[r"layers\.0\.mlp"])


@pytest.mark.slow
def test_estimates_say_that_they_do_not_see_inputs(tmp_path: Path) -> None:
    for activations in (Activations.none, TOKEN):
        budget = Budget(targets=[0.25], corrections=0)
        settings = make_settings(budget, Int8(activations=activations), components=FEW)
        record = run(tmp_path / activations.name, settings)
        said = [note for note in record.notes if note.startswith("Estimates of int8 include the change of the weights")]
        assert len(said) == (activations is TOKEN)


def test_a_forecast_says_it_too(tmp_path: Path) -> None:
    settings = forecasts.make_settings(Magnitude(), Int8(activations=TOKEN), LlmInt8(), components=FEW)
    notes = forecasts.run(tmp_path, settings)["notes"]
    (note,) = (note for note in notes if "include the change of the weights" in note)
    assert note.startswith("Estimates of int8, llm_int8 include") and note.endswith("scores include both.")


def test_wrong_options_and_components_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^`compressor\.llm_int8\.threshold` must be positive, got 0\.0; give"):
        LlmInt8(0.0).offer(component_of(torch.zeros(2, 2)))
    base = save_checkpoint("mamba", tmp_path / "base", with_tokenizer=True)
    settings = make_settings(Uniform(), Int8(activations=TOKEN), model=ModelSettings(path=str(base)))
    with pytest.raises(
        Exception, match=r"^the inputs of `backbone.layers.0.mixer.dt_proj` cannot be treated"
    ) as caught:
        run(tmp_path / "run", settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "reference.safetensors").exists(), "it must be found before anything costs time"


def test_a_compressor_must_announce_that_it_treats_inputs(tmp_path: Path) -> None:
    class Silent(Int8):
        name = "silent"

        @property
        def transforms_inputs(self) -> bool:
            return False

        def compress(self, weight: Tensor, amount: float, context: Context) -> Any:  # noqa: ANN401
            return Int8(activations=TOKEN).compress(weight, amount, context)

    model: Model = load_model(ModelSettings(path=str(save_checkpoint("llama", tmp_path))))
    treatments = make_treatments(Silent())
    name = next(iter(model.components))
    with pytest.raises(PluginError, match=r"`silent` of .* `transforms_inputs` must be True"):
        treatments.compress(model, {name: Treatment("silent", 0.75)})


def test_components_of_every_dtype_treat_inputs_on_the_model(tmp_path: Path) -> None:
    """float16 and bfloat16: a compressed weight put on a model is the module on treated inputs."""
    for dtype in (DType.bfloat16, DType.float16):
        base = save_checkpoint("llama", tmp_path / dtype.value, getattr(torch, dtype.value))
        model = load_model(ModelSettings(path=str(base), dtype=dtype), ComponentSettings(include=["down_proj"]))
        for name, weight_view in model.weight_views.items():
            weight = model.read(name)
            context = Context(weight_view.component, calibration={"absmax": torch.arange(weight.shape[1]) / 5.0})
            for compressor in (Int8(activations=TOKEN), LlmInt8()):
                compressed = compressor.compress(weight, 0.5, context)
                assert is_linear(weight_view.owner) and compressed.input_transform is not None
                inputs = torch.randn(2, 3, weight.shape[1], generator=torch.Generator().manual_seed(0)).to(weight)
                with model.swapped({name: make_replacement(compressed)}):
                    found = weight_view.owner(inputs)
                expected = torch.nn.functional.linear(compressed.input_transform(inputs), compressed.dense())
                assert torch.equal(found, expected)
                assert isinstance(compressed.input_transform, MixedInputs | TokenRounding)
