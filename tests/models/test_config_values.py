"""Values in a config.json that no network can have: one line that says the key, the value and the rule."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

import compressor
from compressor.errors import ModelError
from compressor.models import Model, load_model
from compressor.models.config_values import NAMES, OBJECTS, check_values
from compressor.models.loading import quiet_loading
from compressor.settings import ModelSettings
from tests.support.families import save_checkpoint
from tests.support.hostile_models import assert_one_line, edit_config

THETA = {"rope_type": "default", "rope_theta": 1e4}
NAME = "a name that transformers knows, got 'nope'"
ROPE = "must be a finite number above 0, got "
WRONG: dict[str, list[tuple[str, object, str]]] = {
    "llama": [
        *((key, 0, "must be at least 1, got 0; correct it") for key in ("max_position_embeddings", "vocab_size")),
        *((key, 0, "must be at least 1, got 0") for key in ("num_attention_heads", "num_key_value_heads")),
        *((key, -1, "must be at least 1, got -1") for key in ("num_hidden_layers", "hidden_size", "head_dim")),
        ("intermediate_size", -1, "must be at least 1, got -1"),
        ("hidden_size", 10**30, "must be an integer of 64 bits, got 10"),
        ("num_labels", 30_000_000, "must be at most 100000, got 30000000"),
        ("hidden_act", "silo", r"must be a name that transformers knows, got 'silo'; did you mean .*`silu`"),
        ("rope_parameters.rope_type", THETA | {"rope_type": "nope"}, NAME),
        ("rope_scaling.type", {"type": "nope", "factor": 2.0}, NAME),
        ("rope_theta", "x", f"{ROPE}'x'"),
        ("rope_parameters.rope_theta", THETA | {"rope_theta": "x"}, f"{ROPE}'x'"),
        ("rope_parameters.rope_theta", THETA | {"rope_theta": math.inf}, f"{ROPE}inf"),
        ("rope_parameters.factor", THETA | {"rope_type": "linear", "factor": 0}, f"{ROPE}0"),
        ("rms_norm_eps", -1.0, "must be finite and at least 0, got -1.0"),
        ("rms_norm_eps", math.nan, "must be finite and at least 0, got nan"),
        ("dtype", "nope", "must be the name of a dtype of torch, such as bfloat16, got 'nope'"),
        ("pad_token_id", 10**9, "must be an id below `vocab_size`, or null, got 1000000000"),
    ],
    "gpt2": [
        ("n_layer", 10**9, "must be at most 100000, got 1000000000"),
        *((key, 0, "must be at least 1, got 0") for key in ("n_positions", "n_embd", "n_head", "n_layer")),
        ("n_inner", -1, "must be at least 0, got -1"),
        ("activation_function", "nope", NAME),
        ("layer_norm_epsilon", -1.0, "must be finite and at least 0, got -1.0"),
    ],
    "phi3": [("max_position_embeddings", -1, "must be at least 1, got -1"), ("hidden_act", "nope", NAME)],
    "gemma3": [
        ("hidden_activation", "nope", NAME),
        ("sliding_window", -1, "must be at least 0, got -1"),
        ("rope_parameters.full_attention.rope_theta", {"full_attention": THETA | {"rope_theta": -1}}, f"{ROPE}-1"),
    ],
    "mixtral": [
        ("num_local_experts", -1, "must be at least 0, got -1"),
        ("num_experts_per_tok", 0, "must be from 1 to the 3 experts, got 0"),
        ("num_experts_per_tok", 4, "must be from 1 to the 3 experts, got 4"),
    ],
    "dbrx": [
        ("d_model", 0, "must be at least 1, got 0"),
        ("max_seq_len", 0, "must be at least 1, got 0"),
        ("ffn_config.ffn_act_fn.name", {"ffn_hidden_size": 48, "ffn_act_fn": {"name": "nope"}}, NAME),
    ],
}  # fmt: skip


def load_plainly(folder: Path) -> Model:
    return load_model(ModelSettings(str(folder)))


@pytest.mark.parametrize("family", WRONG)
def test_a_value_that_no_network_can_have(family: str, tmp_path: Path) -> None:
    folder = save_checkpoint(family, tmp_path)
    original = (folder / "config.json").read_text()
    for key, value, rule in WRONG[family]:
        edit_config(folder, **{key.partition(".")[0]: value})
        with pytest.raises(ModelError, match=rf"^`{key}` of `.*config\.json` .*{rule}") as caught:
            load_model(ModelSettings(str(folder)))
        assert_one_line(caught.value)
        (folder / "config.json").write_text(original)
    load_model(ModelSettings(str(folder)))


KINDS: list[tuple[str, object, str]] = [
    *((key, [], r"of `.*` must be a JSON object, got \[\]; correct it") for key in OBJECTS),
    *((key, 5, "of `.*` must be a name, got 5; correct it") for key in NAMES),
    ("text_config", {}, ", and a `llama` has none; remove it"),
    ("num_labels", "x", ", which is 'x'$"),
    ("id2label", 5, ", which is 5$"),
    ("layer_types", 5, ", which is 5$"),
    ("rms_norm_eps", "x", ", which is 'x'$"),
    ("hidden_size", 47, r"not a multiple .*; mend it$"),  # or of the number of heads: only the user knows
]


@pytest.mark.parametrize("opens", [load_plainly, compressor.load])
def test_entries_of_a_wrong_type(opens: Callable[[Path], object], tmp_path: Path) -> None:
    folder = save_checkpoint("llama", tmp_path)
    original = (folder / "config.json").read_text()
    for key, value, rule in KINDS:
        edit_config(folder, **{key: value})
        with pytest.raises(ModelError, match=rule) as caught:
            opens(folder)
        assert_one_line(caught.value)
        assert key in str(caught.value) or key == "hidden_size"
        (folder / "config.json").write_text(original)


@pytest.mark.parametrize("opens", [load_plainly, compressor.load])
@pytest.mark.parametrize("content", ["null", "[]", "{"])
def test_settings_of_generation_that_are_none(content: str, opens: Callable[[Path], object], tmp_path: Path) -> None:
    folder = save_checkpoint("llama", tmp_path)
    (folder / "generation_config.json").write_text(content)
    with pytest.raises(ModelError, match=r"generation_config\.json` must .*; mend it, or remove it$"):
        opens(folder)


def test_values_of_the_text_part_are_checked_too() -> None:
    with pytest.raises(ModelError, match=r"`num_hidden_layers` of `config\.json` must be at least 1, got 0"):
        check_values({"text_config": {"num_hidden_layers": 0}}, Path("config.json"))


@pytest.mark.slow
def test_the_defaults_of_every_family_are_taken() -> None:
    taken = 0
    with quiet_loading(torch.device("cpu")):
        for family in set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) & set(CONFIG_MAPPING):
            try:
                values = CONFIG_MAPPING[family]().to_dict()
            except Exception:  # some have defaults that they refuse
                continue
            check_values(values, Path("config.json"))
            taken += 1
    assert taken > 100
