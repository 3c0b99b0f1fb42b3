"""Cut checkpoints against the model with zeros: logits of plain transformers, and numbers of parameters by hand."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

import compressor
from compressor import export
from compressor.commands.early_checks import check_settings
from compressor.errors import ConfigError
from compressor.export.cut_families import CUT_FAMILIES
from compressor.models import Model, load_model
from compressor.models.blocks import Block, find_blocks
from compressor.models.loading import quiet_loading
from compressor.plugins import installed
from compressor.settings import ComponentSettings, ExportSettings, ModelSettings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.rtn import Rtn
from compressor_plugins.schedules.uniform import Uniform
from tests.support.exports import draw_tokens
from tests.support.families import FAMILIES, ODDITIES, TWO, each, save_checkpoint
from tests.support.runs import make_settings, run

DEAD = (19, 17)
"""Dead channels of the MLPs in the two layers. The smaller number can be cut out of both."""
UNCUT = ("bloom", "gpt_oss", "llama4", "dbrx", "granitemoeshared", "modernbert_decoder", "mpt", "mamba")


def open_model(folder: Path, family: str, stream: bool = False, **values: Any) -> Model:  # noqa: ANN401 - any config value
    base = save_checkpoint(family, folder / "base", with_tokenizer=True, **values)
    return load_model(ModelSettings(path=str(base), stream=stream))


def zero_rows(model: Model, block: Block, kind: str, rows: slice) -> None:
    """Set rows of a matrix to zero, and their bias, by the position of the whole matrix in its module."""
    view = block.views[kind]
    weight = view.read()
    weight[rows] = 0
    model.write(view.component.name, weight)
    bias = getattr(view.owner, "bias", None)
    if bias is not None:
        assert len(bias) == len(weight), "no bias of a fused matrix here"
        with torch.no_grad():
            bias[rows] = 0


def zero_columns(model: Model, block: Block, columns: slice) -> None:
    assert block.last is not None
    weight = block.last.read()
    weight[:, columns] = 0
    model.write(block.last.component.name, weight)


def list_mlps(model: Model) -> list[Block]:
    found = find_blocks(model.weight_views.values())
    return [block for block in found if block.last is not None and not block.is_attention]


def list_attentions(model: Model) -> list[Block]:
    return [block for block in find_blocks(model.weight_views.values()) if block.is_attention]


def kill_channels(model: Model) -> None:
    """Channels of each MLP, in the first layer by their columns of the last matrix, in the second by rows."""
    for block in list_mlps(model):
        assert block.last is not None
        layer = block.last.component.layer
        if layer == 0:
            zero_columns(model, block, slice(3, 3 + DEAD[0]))
        else:
            kind = "up" if "gate" in block.views else "fc_in"
            zero_rows(model, block, kind, slice(0, DEAD[1]))


def kill_heads(model: Model) -> None:
    """One group of heads that share a key in each layer: by columns, then by rows of the value."""
    for block in list_attentions(model):
        output = block.views["output"]
        width = output.component.input_group
        if output.component.layer == 0:
            zero_columns(model, block, slice(width, 2 * width))
        else:
            rows = block.views["value"].component.shape[0] * width // output.component.shape[1]
            zero_rows(model, block, "value", slice(0, rows))


def read_dense(folder: Path) -> PreTrainedModel:
    """What plain transformers makes of a folder; a tensor that is missing or has another shape is an error."""
    with quiet_loading(torch.device("cpu")):
        network, found = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")), found
    loaded: PreTrainedModel = network.eval()
    return loaded


def find_logits(network: PreTrainedModel) -> Tensor:
    with torch.no_grad():
        logits: Tensor = network(input_ids=draw_tokens(), use_cache=False).logits
    return logits


def save_cut(model: Model, folder: Path) -> export.Exported:
    return export.save("auto", model, folder / "model", {}, {}, {}, cut=True)


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize("family", each([name for name in {**FAMILIES, **ODDITIES} if name not in UNCUT], TWO))
def test_a_cut_model_gives_the_logits_of_the_one_with_zeros(family: str, tmp_path: Path) -> None:
    model = open_model(tmp_path, family)
    kill_channels(model)
    config, before = model.network.config, find_logits(model.network)
    facts = CUT_FAMILIES[config.model_type]
    if facts.heads:
        kill_heads(model)
        before = find_logits(model.network)
    saved = save_cut(model, tmp_path)
    network = read_dense(saved.path)
    torch.testing.assert_close(find_logits(network), before, rtol=1e-4, atol=1e-4)

    expected = count(model.network)
    for block in list_mlps(model):
        same = [one for one in list_mlps(model) if facts.find_width(one.path) == facts.find_width(block.path)]
        dead = min(DEAD[one.last.component.layer or 0] for one in same if one.last is not None)
        if "experts" in block.path:  # rows of 16 bytes in bfloat16
            dead = {48: 16, 24: 16}[block.views["down"].component.shape[1]]
        for kind, view in block.views.items():
            out, width = view.component.shape
            if kind in ("down", "fc_out"):
                expected -= dead * out
            else:
                expected -= dead * (width + (getattr(view.owner, "bias", None) is not None))
    if facts.heads:
        for block in list_attentions(model):
            groups = block.views["output"].component.shape[1] // block.views["output"].component.input_group
            for kind, view in block.views.items():
                rows, columns = view.component.shape
                is_biased = kind != "output" and getattr(view.owner, "bias", None) is not None
                expected -= (rows * columns + is_biased * rows) // groups
        assert network.config.num_key_value_heads == 1
        assert network.config.head_dim == (getattr(config, "head_dim", None) or 8)
    assert count(network) == expected
    assert saved.is_cut and saved.bytes == sum(path.stat().st_size for path in saved.path.glob("*.safetensors"))
    again = load_model(ModelSettings(path=str(saved.path)))
    assert [name for name in again.components] == [name for name in model.components]
    assert torch.equal(find_logits(compressor.load(saved.path, dtype="float32")), find_logits(network))
    total = sum(component.parameters for component in model.components.values())
    bits = sum(saved.bits[name] * component.parameters for name, component in model.components.items())
    assert bits == 32 * sum(component.parameters for component in again.components.values()) < 32 * total


@pytest.mark.parametrize("family", each(["mpt", "bloom"], ["bloom"]))
def test_a_family_that_cannot_be_cut_says_so(family: str, tmp_path: Path) -> None:
    model = open_model(tmp_path, family)
    for block in list_attentions(model):
        zero_columns(model, block, slice(0, 8))
    before = find_logits(model.network)
    saved = save_cut(model, tmp_path)
    assert any(f"Nothing was cut: a model of the family `{family}` cannot be" in note for note in saved.notes)
    assert not saved.is_cut and torch.equal(find_logits(read_dense(saved.path)), before)


def test_heads_stay_where_config_json_has_no_width_of_a_head(tmp_path: Path) -> None:
    model = open_model(tmp_path, "gpt2")
    for block in list_attentions(model):
        zero_columns(model, block, slice(0, 8))
    before = find_logits(model.network)
    saved = save_cut(model, tmp_path)
    assert any(note.startswith("No attention head was cut, although some add nothing: config") for note in saved.notes)
    assert not saved.is_cut and torch.equal(find_logits(read_dense(saved.path)), before)


@pytest.mark.parametrize(("family", "stays"), [("llama", 4), ("mistral", 3)])
def test_single_heads_and_what_transformers_requires_of_their_number(family: str, stays: int, tmp_path: Path) -> None:
    """A hidden size of 32 is a multiple of 4 heads and not of 3, which is required of a Llama, not of a Mistral."""
    model = open_model(tmp_path, family, num_key_value_heads=4)
    for block in list_attentions(model):
        zero_columns(model, block, slice(8, 16))
    before = find_logits(model.network)
    saved = save_cut(model, tmp_path)
    network = read_dense(saved.path)
    assert (network.config.num_attention_heads, network.config.num_key_value_heads) == (stays, stays)
    rule = "`num_key_value_heads` stays 4: the number of heads must divide the hidden size 32."
    assert (rule in saved.notes) == (stays == 4)
    torch.testing.assert_close(find_logits(network), before, rtol=1e-4, atol=1e-4)


def test_only_what_every_layer_can_spare_is_cut(tmp_path: Path) -> None:
    model = open_model(tmp_path, "llama")
    zero_columns(model, list_mlps(model)[0], slice(0, 20))
    saved = save_cut(model, tmp_path)
    assert not saved.is_cut
    where = "model.layers.1.mlp"
    assert f"`intermediate_size` stays 48: all layers share it, and `{where}` needs all of them." in saved.notes
    assert "`num_key_value_heads` stays 2: every attention head adds something." in saved.notes


def test_a_streamed_model_is_cut_too(tmp_path: Path) -> None:
    model = open_model(tmp_path, "llama", stream=True)
    kill_channels(model)
    network = read_dense(save_cut(model, tmp_path).path)
    assert network.config.intermediate_size == 48 - DEAD[1]
    torch.testing.assert_close(find_logits(network), model.logits(draw_tokens(), 12), rtol=1e-4, atol=1e-4)


def test_a_model_without_any_live_channel_keeps_one(tmp_path: Path) -> None:
    model = open_model(tmp_path, "llama")
    for block in list_mlps(model):
        zero_columns(model, block, slice(None))
    network = read_dense(save_cut(model, tmp_path).path)
    assert network.config.intermediate_size == 1
    torch.testing.assert_close(find_logits(network), find_logits(model.network), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("activation", "size"), [("silu", 38), ("sigmoid", 48)])
def test_zero_rows_of_the_gate_are_dead_only_if_the_activation_keeps_zero(
    activation: str, size: int, tmp_path: Path
) -> None:
    model = open_model(tmp_path, "llama", hidden_act=activation)
    for block in list_mlps(model):
        zero_rows(model, block, "gate", slice(5, 15))
    network = read_dense(save_cut(model, tmp_path).path)
    assert network.config.intermediate_size == size
    torch.testing.assert_close(find_logits(network), find_logits(model.network), rtol=1e-4, atol=1e-4)


def test_a_row_with_a_bias_lives(tmp_path: Path) -> None:
    model = open_model(tmp_path, "opt")
    for block in list_mlps(model):
        zero_rows(model, block, "fc_in", slice(0, 10))
        with torch.no_grad():
            block.views["fc_in"].owner.bias[0] = 1.0
    assert read_dense(save_cut(model, tmp_path).path).config.ffn_dim == 39


@pytest.mark.parametrize("export", [ExportSettings(gguf=True), ExportSettings("compressed-tensors")])
def test_formats_that_cannot_be_cut_are_refused_at_once(export: ExportSettings) -> None:
    export.cut = True
    with pytest.raises(ConfigError, match=r"`export.cut=true` cuts dense weights, and `export\.\S+` writes others"):
        check_settings(make_settings(Uniform(), Magnitude(), export=export), installed())


def test_bits_of_the_embedding_stay_what_they_are(tmp_path: Path) -> None:
    """An embedding is not cut, also where it is a component, and where it is tied to the LM head."""
    base = save_checkpoint("qwen2", tmp_path / "base", with_tokenizer=True)
    model = load_model(ModelSettings(path=str(base)), ComponentSettings(include=["embed_tokens", "down_proj"]))
    for name in model.components:
        if "down_proj" in name:
            weight = model.read(name)
            weight[:, :12] = 0
            model.write(name, weight)
    bits = save_cut(model, tmp_path).bits
    assert bits.keys() == model.components.keys() and bits["model.embed_tokens"] == 32
    assert {bits[name] for name in bits if "down_proj" in name} == {24.0}


def test_packed_weights_are_not_cut(tmp_path: Path) -> None:
    settings = make_settings(Uniform(), Rtn(bits=[4]), export=ExportSettings(verify=False, cut=True))
    record = run(tmp_path, settings)
    assert any(note.startswith("Nothing was cut, because the saved model has packed weights") for note in record.notes)


def test_a_run_saves_checks_and_reports_the_smaller_files(tmp_path: Path) -> None:
    """All of the MLP in one layer and none in the others is cut nowhere; all of them are cut down to one channel."""
    settings = make_settings(Uniform(targets=[1.0]), Magnitude(), export=ExportSettings(cut=True))
    settings.components.include = ["down_proj"]
    record = run(tmp_path / "run", settings)
    folder = tmp_path / "run" / "model"
    values = json.loads((folder / "config.json").read_text())
    assert (values["intermediate_size"], values["num_key_value_heads"]) == (1, 3)
    assert record.final is not None and record.export is not None
    assert record.final.bytes == (folder / "model.safetensors").stat().st_size
    assert (record.final.bitmask_bytes, record.final.zstd_bytes) == (None, None)
    assert record.export.verification is not None and record.export.verification.state == "verified"
    assert record.final.bits_per_weight == pytest.approx(16 / 512)
    again = make_settings(Uniform(targets=[0.5]), Magnitude(), export=ExportSettings(verify=False))
    again.model.path = str(folder)
    assert run(tmp_path / "again", again).status == "done"
