"""Checkpoints whose files hold something else than their config says: one line, or a note where no logit depends on it.

Also ids without a row in the embedding.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from compressor import export
from compressor.errors import ModelError
from compressor.models import Model, load_model
from compressor.settings import ModelSettings
from tests.support.families import VOCABULARY, save_checkpoint
from tests.support.hostile_models import assert_one_line, edit_config

UP = "model.layers.1.mlp.up_proj"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_checkpoint("llama", tmp_path / "llama", torch.bfloat16, with_tokenizer=True)


def load(folder: Path, stream: bool = False) -> Model:
    return load_model(ModelSettings(str(folder), stream=stream))


def edit_weights(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def expect_refusal(folder: Path, message: str) -> None:
    for stream in (False, True):
        with pytest.raises(ModelError, match=message) as caught:
            load(folder, stream)
        assert_one_line(caught.value)


def test_a_layer_that_predicts_further_tokens_is_noted(checkpoint: Path, tmp_path: Path) -> None:
    size, logits = load(checkpoint).stored_bytes, load(checkpoint).logits(torch.tensor([[1, 5, 9]]), 3)
    edit_weights(checkpoint, lambda t: t.update({n.replace("s.1.", "s.2."): t[n].clone() for n in [*t] if "s.1." in n}))
    expect_refusal(checkpoint, r"says `num_hidden_layers` 2 does not have: `model\.layers\.2\.")
    edit_config(checkpoint, num_nextn_predict_layers=1)
    for stream in (False, True):
        model = load(checkpoint, stream)
        assert model.notes[0].startswith("9 tensors") and "`model.layers.2." in model.notes[0]
        assert abs(model.stored_bytes - size) < 2000
    model = load(checkpoint)
    assert torch.equal(model.logits(torch.tensor([[1, 5, 9]]), 3), logits)
    export.save_dense(model, tmp_path / "saved", {}, {})
    assert json.loads((tmp_path / "saved" / "config.json").read_text())["num_nextn_predict_layers"] == 0


def test_layers_that_the_config_drops(checkpoint: Path) -> None:
    edit_config(checkpoint, num_hidden_layers=1)
    expect_refusal(checkpoint, r"stores 9 tensors .*`num_hidden_layers` 1 does not have: `model\.layers\.1\.")


@pytest.mark.parametrize("values", [{"num_hidden_layers": 10**9}, {"num_local_experts": 10**9}])
def test_more_layers_or_experts_than_tensors(values: dict[str, int], tmp_path: Path) -> None:
    folder = save_checkpoint("mixtral", tmp_path)
    edit_config(folder, **values)
    expect_refusal(folder, f"`{next(iter(values))}` of .* must be at most .* got 1000000000")


def test_a_network_much_larger_than_its_files(checkpoint: Path) -> None:
    edit_config(checkpoint, intermediate_size=10**9)
    expect_refusal(checkpoint, r"must have the shape \[.*1000000000.*\] by its config")


def test_biases_that_the_config_does_not_announce(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda t: t.update({f"{UP}.bias": torch.ones(48, dtype=torch.bfloat16)}))
    expect_refusal(checkpoint, rf"stores 1 tensors that the network .* does not have: `{UP}\.bias`")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_scales_beside_weights(dtype: torch.dtype, checkpoint: Path) -> None:
    scales = {f"{UP}.weight_scale": torch.ones(1)}
    edit_weights(checkpoint, lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].to(dtype), **scales}))
    expect_refusal(checkpoint, rf"is quantized: it has 1 tensors like `{UP}\.weight_scale`")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_weights_that_are_not_floating_point(dtype: torch.dtype, checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda t: t.update({f"{UP}.weight": t[f"{UP}.weight"].to(dtype)}))
    expect_refusal(checkpoint, rf"`{UP}\.weight` of .* must be stored in floating point")


def test_what_old_checkpoints_store_is_computed(tmp_path: Path) -> None:
    folder = save_checkpoint("gpt2", tmp_path)
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 64, 64), "transformer.h.0.attn.masked_bias": torch.ones(())}
    edit_weights(folder, lambda t: t.update(masks))
    assert load(folder).notes[0].startswith("2 tensors of the checkpoint are computed")
    edit_weights(folder, lambda t: t.update({"transformer.h.0.attn.bias": torch.ones(32)}))
    expect_refusal(folder, r"does not have: `transformer\.h\.0\.attn\.bias`")


def test_a_tensor_in_two_shards(checkpoint: Path) -> None:
    whole = checkpoint / "model.safetensors"
    tensors = load_file(whole)
    whole.rename(checkpoint / "a.safetensors")
    save_file({f"{UP}.weight": tensors[f"{UP}.weight"]}, checkpoint / "b.safetensors", {"format": "pt"})
    places = dict.fromkeys(tensors, "a.safetensors") | {f"{UP}.weight": "b.safetensors"}
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    expect_refusal(checkpoint, rf"`{UP}\.weight` is stored twice, in .*a\.safetensors.* and in `b\.safetensors`")
    for name in ("x" * 5000, "../a.safetensors", 3):
        index.write_text(json.dumps({"weight_map": {UP: name}}))
        expect_refusal(checkpoint, "must name files of its folder")
    index.write_text("[" * 100_000)
    expect_refusal(checkpoint, "must be JSON")


@pytest.mark.parametrize(
    "values", [{"auto_map": [1]}, {"architectures": [1]}, {"architectures": "Llama"}, {"model_type": ["llama"]}]
)
def test_entries_of_another_type(values: dict[str, object], checkpoint: Path) -> None:
    edit_config(checkpoint, **values)
    expect_refusal(checkpoint, f"`{next(iter(values))}` .*, got ")


def test_no_classes_of_its_own(checkpoint: Path) -> None:
    edit_config(checkpoint, auto_map=None)
    expect_refusal(checkpoint, "is no valid config of `llama`")


def test_a_config_that_asks_for_other_outputs(checkpoint: Path, tmp_path: Path) -> None:
    edit_config(checkpoint, return_dict=False, output_attentions=True)
    model = load(checkpoint)
    export.check_savable(model)
    export.save_dense(model, tmp_path / "saved", {}, {})
    assert load(tmp_path / "saved").vocabulary == VOCABULARY


def test_a_begin_of_text_beyond_the_embedding(checkpoint: Path, tmp_path: Path) -> None:
    folder = save_checkpoint("llama", tmp_path / "plain")
    edit_config(folder, bos_token_id=5000)
    expect_refusal(folder, rf"`bos_token_id` of config\.json of .* is 5000, .* 0 to {VOCABULARY - 1}")


def test_other_ids_beyond_the_embedding_are_noted(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"eos_token_id": [2, 900]}')
    assert "`eos_token_id` of generation_config.json 900. No score" in load(checkpoint).notes[0]


@pytest.mark.parametrize("stream", [False, True])
def test_files_of_the_base_come_along(stream: bool, checkpoint: Path, tmp_path: Path) -> None:
    settings = '{"temperature": 0.9, "top_p": 0.6}'  # transformers does not save these
    (checkpoint / "generation_config.json").write_text(settings)
    kept = {"preprocessor_config.json": "{}", "chat_template.jinja": "hello", "LICENSE": "free"}
    left = {"own.py": "", "adapter_config.json": "{}", "optimizer.json": "{}", "notes.md": ""}
    for name, text in (kept | left).items():
        (checkpoint / name).write_text(text)
    model = load(checkpoint, stream)
    export.check_savable(model)
    exported = export.save_dense(model, tmp_path / "saved", {}, {})
    assert {name: (tmp_path / "saved" / name).read_text() for name in kept} == kept
    assert (tmp_path / "saved" / "generation_config.json").read_text() == settings
    assert not any((tmp_path / "saved" / name).exists() for name in left)
    assert "preprocessor_config.json" in exported.notes[-1]
