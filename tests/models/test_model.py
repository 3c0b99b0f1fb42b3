"""Models: what loads and what is refused, and forward passes that agree with the network's own."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import shutil
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from huggingface_hub import errors as hub_errors
from huggingface_hub import utils as hub_utils
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import logging as transformers_logging

from compressor.errors import CompressorError, ConfigError, ModelError, PlanError
from compressor.models import Model, load_model
from compressor.models.checkpoint import StoredTensor, find_common_tensor
from compressor.models.forward import run_body, run_head, run_network
from compressor.models.loading import probe_network, quiet_loading
from compressor.settings import ComponentSettings, Device, DType, ModelSettings
from tests.support.families import (
    CONTEXT,
    FAMILIES,
    ODDITIES,
    VOCABULARY,
    each,
    make_network,
    save_checkpoint,
    save_tokenizer,
)
from tests.support.hostile_models import REMOTE_CODE, edit_config

ALL = each(FAMILIES | ODDITIES)
CPU = torch.device("cpu")
TRAINED = Path(__file__).resolve().parents[3] / "shared" / "models"


def load(folder: Path | str, **settings: Any) -> Model:  # noqa: ANN401 - any setting
    return load_model(ModelSettings(str(folder), **{"device": Device.cpu, **settings}))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Model]:
    """A loaded model by family, made once; tests leave it as it was."""

    @functools.cache
    def give(family: str) -> Model:
        return load(save_checkpoint(family, tmp_path_factory.mktemp(family), with_tokenizer=True))

    return give


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A sound llama that a test may spoil."""
    return save_checkpoint("llama", tmp_path / "llama", with_tokenizer=True, tie_word_embeddings=False)


def draw_tokens(sequences: int = 3, length: int = 9) -> Tensor:
    return torch.randint(0, VOCABULARY, (sequences, length), generator=torch.Generator().manual_seed(1))


def pick_greedy(logits: Tensor) -> Tensor:
    return logits.argmax(-1)


@pytest.fixture
def quiet() -> Iterator[None]:
    """Some families say once that a fast kernel is missing; that is not what is tested."""
    with quiet_loading(CPU):
        yield


@pytest.mark.parametrize("family", ALL)
def test_logits_are_those_of_a_plain_forward(family: str, loaded: Callable[[str], Model], quiet: None) -> None:
    model, tokens = loaded(family), draw_tokens()
    with torch.no_grad():
        whole = model.network(tokens).logits
    assert model.vocabulary == whole.shape[-1] == VOCABULARY
    for keep in (1, 4, 9):
        torch.testing.assert_close(model.logits(tokens, keep), whole[:, -keep:])


@pytest.mark.parametrize("family", ALL)
def test_head_of_body_is_the_network_bit_for_bit(family: str, loaded: Callable[[str], Model], quiet: None) -> None:
    model, tokens = loaded(family), draw_tokens()
    for keep in (1, 4, 9):
        hidden = model.hidden(tokens, keep)
        assert hidden.shape == (3, keep, 32)
        assert torch.equal(model.project(hidden), model.logits(tokens, keep))
    assert torch.equal(model.project(hidden[:2, 3:5]), model.project(hidden[:2, 3:5].contiguous()))
    assert "forward" not in vars(model.network.get_decoder()), "projecting leaves the body as it was"


@pytest.mark.parametrize("family", ALL)
def test_a_frozen_head_is_the_head_bit_for_bit(family: str, loaded: Callable[[str], Model], quiet: None) -> None:
    model = loaded(family)
    hidden = model.hidden(draw_tokens(), 4)
    head = model.freeze_head(hidden[:1, :2])
    assert head.device == model.device
    assert torch.equal(head(hidden), model.project(hidden))
    head.own()
    assert torch.equal(head(hidden[:2]), model.project(hidden[:2]))


@pytest.mark.parametrize("family", ALL)
def test_decode_is_greedy_generate(family: str, loaded: Callable[[str], Model], quiet: None) -> None:
    model, tokens = loaded(family), draw_tokens(length=11)
    model.network.generation_config.eos_token_id = None
    expected = model.network.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=12, pad_token_id=0
    )
    assert torch.equal(model.decode(tokens, 12, pick_greedy), expected)
    assert torch.equal(model.decode(tokens, 0, pick_greedy), tokens)


@pytest.mark.parametrize("family", each(FAMILIES))
def test_what_a_model_says_of_itself(family: str, loaded: Callable[[str], Model]) -> None:
    model = loaded(family)
    weights = [path for path in model.folder.iterdir() if path.suffix == ".safetensors"]
    assert model.stored_bytes == sum(path.stat().st_size for path in weights)
    assert model.base_parameters == sum(p.numel() for p in {id(p): p for p in model.network.parameters()}.values())
    assert model.context == (None if family == "bloom" else CONTEXT)
    assert (model.bos, model.adds_bos) == (1, True)
    assert (model.device, model.dtype) == (CPU, torch.float32)
    assert not model.network.training and not any(p.requires_grad for p in model.network.parameters())
    assert {component.stored_bits for component in model.components.values()} == {32}
    assert model.tokenizer is not None
    assert (
        model.tokenizer.decode(model.tokenizer("a tiny test")["input_ids"], skip_special_tokens=True) == "a tiny test"
    )


def test_decode_does_not_stop_and_asks_pick_for_every_token(loaded: Callable[[str], Model]) -> None:
    shapes = []

    def pick_end(logits: Tensor) -> Tensor:
        shapes.append(tuple(logits.shape))
        return torch.full(logits.shape[:1], 2)

    decoded = loaded("llama").decode(draw_tokens(), 5, pick_end)
    assert decoded[:, 9:].eq(2).all() and decoded.shape == (3, 14)
    assert shapes == [(3, VOCABULARY)] * 5


def test_the_soft_cap_is_on_the_side_of_the_head(loaded: Callable[[str], Model]) -> None:
    model = loaded("gemma2")
    hidden = model.hidden(draw_tokens(), 2) * 1e4
    cap = model.network.config.final_logit_softcapping
    uncapped = model.network.get_output_embeddings()(hidden)
    assert float(uncapped.abs().max()) > cap >= float(model.project(hidden).abs().max())


class WholeModel(nn.Module):
    """Stands in for a network whose forward does not call a body."""

    def __init__(self) -> None:
        super().__init__()
        self.network = make_network("llama")
        self.layers = self.network.model.layers
        self.config = self.network.config

    def get_decoder(self) -> nn.Module:
        return self

    def get_output_embeddings(self) -> nn.Module | None:
        return None

    def forward(self, input_ids: Tensor, use_cache: bool) -> CausalLMOutputWithPast:
        return self.network(input_ids)


def test_a_network_without_halves_still_has_logits() -> None:
    network: Any = WholeModel()
    tokens = draw_tokens()
    assert torch.equal(run_network(network, tokens, 4).logits, network.network(tokens).logits[:, -4:])
    for halve in (lambda: run_body(network, tokens, 4), lambda: run_head(network, torch.zeros(1, 2, 32))):
        with pytest.raises(ModelError, match="WholeModel must let the LM head run apart") as caught:
            halve()
        assert_one_line(caught.value)


def test_a_body_that_is_not_called_is_noticed() -> None:
    network = make_network("llama")
    bystander = make_network("llama").model
    network.get_decoder = lambda: bystander
    for halve in (lambda: run_body(network, draw_tokens(), 4), lambda: run_head(network, torch.zeros(1, 2, 32))):
        with pytest.raises(ModelError, match="LlamaForCausalLM must let the LM head run apart"):
            halve()
    assert "forward" not in vars(bystander)


def test_weights_are_read_written_and_swapped_by_name(checkpoint: Path) -> None:
    model = load(checkpoint)
    name, tokens = "model.layers.1.mlp.down_proj", draw_tokens()
    before, logits = model.read(name), model.logits(tokens, 3)
    with model.swapped({name: before * 2}):
        assert not torch.equal(model.logits(tokens, 3), logits)
    assert torch.equal(model.logits(tokens, 3), logits)
    model.write(name, before * 2)
    assert torch.equal(model.read(name), before * 2)
    for use in (lambda: model.read("layer.9"), lambda: model.write("layer.9", before)):
        with pytest.raises(PlanError, match=r"no component `layer\.9`; "):
            use()


def test_component_settings_choose(checkpoint: Path) -> None:
    model = load_model(ModelSettings(str(checkpoint)), ComponentSettings(["mlp"], ["up_proj"]))
    assert list(model.components) == [f"model.layers.{i}.mlp.{leaf}_proj" for i in (0, 1) for leaf in ("gate", "down")]


@pytest.mark.parametrize(
    ("tied", "include", "is_component"),
    [
        (False, [], False),
        (False, ["embed"], False),
        (False, ["lm_head"], True),
        (True, ["embed"], True),
        (True, [], False),
    ],
)
def test_the_head_is_a_component_by_either_name(
    tied: bool, include: list[str], is_component: bool, tmp_path: Path
) -> None:
    folder = save_checkpoint("llama", tmp_path, tie_word_embeddings=tied)
    assert load_model(ModelSettings(str(folder)), ComponentSettings(include)).head_is_component is is_component


@pytest.mark.parametrize("family", ["llama", "mixtral", "gpt2"])
def test_stored_bits_are_those_on_disk(family: str, tmp_path: Path) -> None:
    model = load(save_checkpoint(family, tmp_path, torch.bfloat16))
    assert {component.stored_bits for component in model.components.values()} == {16}
    assert (model.dtype, model.stored_dtype) == (torch.float32, torch.bfloat16)
    assert load(tmp_path, dtype=DType.bfloat16).dtype == torch.bfloat16


def test_stored_bits_differ_between_tensors(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda t: t.update({name: t[name].bfloat16() for name in t if "down_proj" in name}))
    for name, component in load(checkpoint).components.items():
        assert component.stored_bits == (16 if "down_proj" in name else 32)


def test_stored_bits_of_a_checkpoint_of_the_bare_body(tmp_path: Path) -> None:
    """Old GPT-2 checkpoints name their tensors without `transformer.`."""
    save_checkpoint("gpt2", tmp_path)

    def strip(tensors: dict[str, Tensor]) -> None:
        bare = {n.removeprefix("transformer."): t.bfloat16() if "c_fc" in n else t for n, t in tensors.items()}
        tensors.clear()
        tensors.update(bare)

    edit_weights(tmp_path, strip)
    for name, component in load(tmp_path).components.items():
        assert component.stored_bits == (16 if "c_fc" in name else 32)


def test_content_hash_is_of_config_and_weights(checkpoint: Path) -> None:
    first = load(checkpoint).content_hash()
    assert first == load(checkpoint).content_hash() and len(first) == len(hashlib.sha256().hexdigest())
    (checkpoint / "generation_config.json").unlink()
    assert load(checkpoint).content_hash() == first
    edit_weights(checkpoint, lambda tensors: tensors["lm_head.weight"].add_(1))
    second = load(checkpoint).content_hash()
    edit_config(checkpoint, rms_norm_eps=1e-3)
    assert len({first, second, load(checkpoint).content_hash()}) == 3


def test_content_hash_covers_the_code_that_is_trusted(checkpoint: Path) -> None:
    def list_hashes() -> tuple[str, str]:
        return load(checkpoint).content_hash(), load(checkpoint, trust_remote_code=True).content_hash()

    plain = list_hashes()
    assert plain[0] == plain[1]
    (checkpoint / "parts").mkdir()
    found = [plain[1]]
    for name, text in [("own.py", "a = 1"), ("own.py", "a = 2"), ("parts/own.py", "a = 2"), ("parts/own.py", "a = 3")]:
        (checkpoint / name).write_text(text)
        found.append(list_hashes()[1])
        assert list_hashes() == (plain[0], found[-1])
    (checkpoint / "parts" / "own.py").rename(checkpoint / "parts.py")
    found.append(list_hashes()[1])
    assert len(set(found)) == len(found)
    (checkpoint / "read_me.md").write_text("no code")
    assert list_hashes() == (plain[0], found[-1])


def test_sharded_checkpoints_load_whole(tmp_path: Path) -> None:
    network = make_network("llama")
    with quiet_loading(CPU):
        network.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        network.save_pretrained(tmp_path / "one")
    sharded, whole = load(tmp_path / "shards"), load(tmp_path / "one")
    assert len(list(sharded.folder.glob("*.safetensors"))) > 1
    assert torch.equal(sharded.logits(draw_tokens(), 2), whole.logits(draw_tokens(), 2))
    assert sharded.stored_bytes > 0 and sharded.content_hash() != whole.content_hash()


def test_without_a_tokenizer(tmp_path: Path) -> None:
    model = load(save_checkpoint("gpt2", tmp_path))
    assert (model.tokenizer, model.bos, model.adds_bos) == (None, 1, False)
    save_tokenizer(tmp_path, adds_bos=False)
    assert load(tmp_path).adds_bos is False


@pytest.mark.parametrize("fails", [False, True])
def test_quiet_loading_gives_back_what_it_found(fails: bool) -> None:
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(transformers_logging.INFO)
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    try:
        with contextlib.suppress(KeyError), torch.inference_mode(), quiet_loading(CPU):
            assert transformers_logging.get_verbosity() == transformers_logging.ERROR
            assert not transformers_logging.is_progress_bar_enabled()
            assert not torch.rand(1).is_inference()
            random.random()
            np.random.random()
            warnings.warn("nobody hears this", stacklevel=1)
            if fails:
                raise KeyError
        assert transformers_logging.get_verbosity() == transformers_logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
        assert not hub_utils.are_progress_bars_disabled()
    finally:
        transformers_logging.set_verbosity(level)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2][1].tolist()


def test_most_of_a_checkpoint_is_counted_in_weights() -> None:
    tensors = [StoredTensor("F32", 32, 4)] * 9 + [StoredTensor("BF16", 16, 64)]
    common = find_common_tensor(tensors)
    assert (common.dtype, common.bits) == ("BF16", 16)


def test_loading_leaves_no_trace(checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    states = torch.random.get_rng_state(), random.getstate(), np.random.get_state()
    model = load(checkpoint)
    model.decode(model.hidden(draw_tokens(), 1)[..., 0].long().clamp(0, 1), 2, pick_greedy)
    assert torch.equal(torch.random.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2][1].tolist()
    assert transformers_logging.get_verbosity() == level
    assert transformers_logging.is_progress_bar_enabled() == bars
    assert capfd.readouterr() == ("", "")


def test_loading_works_inside_inference_mode(checkpoint: Path) -> None:
    with torch.inference_mode():
        model = load(checkpoint)
    assert not any(parameter.is_inference() for parameter in model.network.parameters())


# What is refused: every message is one line that says what, the rule and the fix.


def assert_one_line(error: BaseException) -> None:
    assert isinstance(error, CompressorError)
    assert "\n" not in str(error) and len(str(error)) < 500


def expect_refusal(path: Path | str, message: str, **settings: Any) -> None:  # noqa: ANN401 - any setting
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ModelError, match=message) as caught:
            load(path, **settings)
    assert_one_line(caught.value)


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("path", ["/no/such/folder", "./nowhere", "../nowhere", "~/no/such/folder", "a/b/c", "a b"])
def test_no_such_folder(path: str) -> None:
    expect_refusal(path, "`model.path`: no such folder `.*`; check the spelling")


def test_no_such_folder_in_one_that_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    expect_refusal("models/lama", "no such folder `models/lama`")


def test_an_empty_path() -> None:
    expect_refusal("", r"`model\.path` is needed and not given; set it")


def test_a_file_is_no_folder(checkpoint: Path) -> None:
    expect_refusal(checkpoint / "config.json", "must be a folder, got the file")


def test_the_embedded_model_or_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, checkpoint: Path) -> None:
    monkeypatch.setattr("compressor.models.checkpoint.EMBEDDED", tmp_path / "tiny")
    with pytest.raises(ModelError, match=r"embedded tiny model is not installed; set `model\.path`") as caught:
        load_model(ModelSettings())
    assert_one_line(caught.value)
    checkpoint.rename(tmp_path / "tiny")
    assert load_model(ModelSettings()).folder == tmp_path / "tiny"


def test_no_config(checkpoint: Path) -> None:
    (checkpoint / "config.json").unlink()
    expect_refusal(checkpoint, r"has no `config\.json`")


@pytest.mark.parametrize("text", ['{"model_type": "llama"', "\udcff", "[1]"])
def test_config_that_is_no_json_object(checkpoint: Path, text: str) -> None:
    (checkpoint / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    expect_refusal(checkpoint, r"config\.json` must (be JSON|hold a JSON object)")


@pytest.mark.parametrize("model_type", ["lama", None, 3])
def test_unknown_model_type(checkpoint: Path, model_type: object) -> None:
    edit_config(checkpoint, model_type=model_type)
    expect_refusal(checkpoint, f"`model_type` in .* must be one that transformers knows, got {model_type!r}")


def test_config_with_values_that_cannot_be(checkpoint: Path) -> None:
    edit_config(checkpoint, hidden_size="wide")
    expect_refusal(checkpoint, "is no valid config of `llama`")


def test_encoder_decoder(tmp_path: Path) -> None:
    config = transformers.T5Config(architectures=["T5ForConditionalGeneration"])
    with quiet_loading(CPU):
        config.save_pretrained(tmp_path)
    expect_refusal(tmp_path, r"holds an encoder-decoder model \(t5\); only decoder-only")


def test_encoder(tmp_path: Path) -> None:
    with quiet_loading(CPU):
        transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
    expect_refusal(tmp_path, "holds BertForMaskedLM, which is not a causal language model")


def test_no_language_model_without_architectures(tmp_path: Path) -> None:
    with quiet_loading(CPU):
        transformers.ViTConfig().save_pretrained(tmp_path)
    expect_refusal(tmp_path, "holds vit, which is not a causal language model")


def test_architectures_may_be_absent(checkpoint: Path) -> None:
    edit_config(checkpoint, architectures=None)
    assert load(checkpoint).vocabulary == VOCABULARY


def test_a_model_that_looks_ahead(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    with quiet_loading(CPU):
        config = transformers.BertConfig(vocab_size=VOCABULARY, is_decoder=False, initializer_range=0.2, **sizes)
        transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    expect_refusal(tmp_path, r"BertLMHeadModel is not a causal \(decoder-only\) model: later tokens must not change")
    edit_config(tmp_path, is_decoder=True)
    assert load(tmp_path).components["bert.encoder.layer.0.attention.self.query"].kind == "query"


def test_quantized_already(checkpoint: Path) -> None:
    edit_config(checkpoint, quantization_config={"quant_method": "gptq", "bits": 4})
    expect_refusal(checkpoint, "is quantized already; the base must be a dense checkpoint")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_only_a_pickle(checkpoint: Path, name: str) -> None:
    (checkpoint / "model.safetensors").rename(checkpoint / name)
    expect_refusal(checkpoint, f"has no safetensors, only `{name}`, .* convert it")


def test_no_weights(checkpoint: Path) -> None:
    (checkpoint / "model.safetensors").unlink()
    expect_refusal(checkpoint, "holds no weights; it must have")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "generation_config.json"])
def test_a_pipe_is_no_file_of_a_model(checkpoint: Path, name: str) -> None:
    (checkpoint / name).unlink(missing_ok=True)
    os.mkfifo(checkpoint / name)
    expect_refusal(checkpoint, f"{name}` is no regular file but a pipe or a device; remove it, or write it anew")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("tokenizer_config.json", "[]", "must hold a JSON object, got list; mend it"),
        ("tokenizer.json", "[]", "must hold a JSON object, got list; mend it"),
        ("tokenizer.json", "{}", "lacks `model`; mend it"),
        ("special_tokens_map.json", "3", "must hold a JSON object, got int; mend it"),
    ],
)
def test_a_file_of_the_tokenizer_that_is_no_object(checkpoint: Path, name: str, content: str, said: str) -> None:
    (checkpoint / name).write_text(content)
    expect_refusal(checkpoint, f"{name}` {said}")


def test_a_model_without_tokenizer_says_so(checkpoint: Path) -> None:
    assert not [note for note in load(checkpoint).notes if "has no tokenizer" in note]
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    assert [note for note in load(checkpoint).notes if "has no tokenizer" in note]


def test_missing_shards(tmp_path: Path) -> None:
    with quiet_loading(CPU):
        make_network("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    last = max(tmp_path.glob("model-*.safetensors"))
    last.unlink()
    expect_refusal(tmp_path, f"lacks 1 of .* weight files that its index names, `{last.name}` first")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    expect_refusal(tmp_path, "must map tensors to files under `weight_map`")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def scramble_header(path: Path) -> None:
    path.write_bytes(struct.pack("<Q", 16) + b"this is not json")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("spoil", [truncate, cut_header, scramble_header, empty])
def test_spoiled_safetensors(checkpoint: Path, spoil: Callable[[Path], None]) -> None:
    spoil(checkpoint / "model.safetensors")
    expect_refusal(checkpoint, r"model\.safetensors` is corrupt or truncated")


def test_safetensors_without_tensors(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: tensors.clear())
    expect_refusal(checkpoint, r"\['model.safetensors'\] hold no tensors")


def test_missing_tensors(checkpoint: Path) -> None:
    edit_weights(checkpoint, lambda tensors: (tensors.pop("lm_head.weight"), tensors.pop("model.norm.weight")))
    expect_refusal(checkpoint, r"lacks 2 tensors that its config asks for, `lm_head\.weight` first")


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "qwen2"])
def test_tied_tensors_are_not_missing(family: str, tmp_path: Path) -> None:
    save_checkpoint(family, tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    network = load(tmp_path).network
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_shapes_that_do_not_match(checkpoint: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.weight"
    edit_weights(checkpoint, lambda tensors: tensors.update({name: torch.zeros(3, 3)}))
    expect_refusal(checkpoint, rf"`{name}` of .* must have the shape \[32, 32\] by its config, got \[3, 3\]")


def test_experts_that_cannot_be_stacked(tmp_path: Path) -> None:
    save_checkpoint("mixtral", tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors.pop(next(name for name in tensors if "experts.1.w1" in name)))
    expect_refusal(tmp_path, "transformers cannot load .* its tensors must be those of its config.json")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite(checkpoint: Path, value: float) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(checkpoint, lambda tensors: tensors[name][3, 4:5].fill_(value))
    expect_refusal(checkpoint, rf"`{name}` of .* holds NaN or infinity \(as float32\); all weights must be finite")


def test_weights_that_are_not_finite_in_the_chosen_dtype(checkpoint: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    edit_weights(checkpoint, lambda tensors: tensors[name][0, :1].fill_(1e30))
    expect_refusal(checkpoint, rf"`{name}` of .* \(as float16\).* or a wider `model.dtype`", dtype=DType.float16)


def test_logits_that_are_not_finite() -> None:
    network = make_network("llama")
    network.get_output_embeddings().weight.fill_(3e38)
    with pytest.raises(ModelError, match="LlamaForCausalLM gives logits that are not finite") as caught:
        probe_network(network)
    assert_one_line(caught.value)


def test_a_tokenizer_that_cannot_be_read(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").write_text('{"model": 3}')
    expect_refusal(checkpoint, "the tokenizer in .* cannot be read")


def test_cuda_without_cuda(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"`model\.device` is cuda, and torch finds no such CUDA device") as caught:
        load(checkpoint, device=Device.cuda)
    assert_one_line(caught.value)
    assert load(checkpoint, device=Device.auto).device == CPU


def test_code_in_the_folder_runs_only_when_trusted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (checkpoint / "own.py").write_text(REMOTE_CODE)
    classes = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnForCausalLM"}
    edit_config(checkpoint, model_type="our_own", architectures=["OwnForCausalLM"], auto_map=classes)
    expect_refusal(checkpoint, r"brings its own code for `our_own`, .* set `model\.trust_remote_code=true`")
    model = load(checkpoint, trust_remote_code=True)
    assert type(model.network).__name__ == "OwnForCausalLM" and len(model.weight_views) == 14


def test_content_hash_covers_code_of_another_repository(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As config.json names it, by `repository--module.class`; a folder stands for a repository."""
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    (tmp_path / "other").mkdir()
    names = {"AutoConfig": "OwnConfig", "AutoModelForCausalLM": "OwnForCausalLM"}
    classes = {auto: f"{tmp_path / 'other'}--own.{name}" for auto, name in names.items()}
    edit_config(checkpoint, model_type="our_own", architectures=["OwnForCausalLM"], auto_map=classes)
    found = []
    for code in (REMOTE_CODE, REMOTE_CODE, f"{REMOTE_CODE}\n\nSCALE = 2\n"):
        (tmp_path / "other" / "own.py").write_text(code)
        found.append(load(checkpoint, trust_remote_code=True).content_hash())
    assert found[0] == found[1] != found[2]


def fake_hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., str]) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = []

    def download(repo: str, **options: Any) -> str:  # noqa: ANN401 - any option
        calls.append({"repo": repo, **options})
        return answer()

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return calls


@pytest.mark.parametrize(("path", "trust"), [("someone/llama-7b", False), ("gpt2", True)])
def test_a_hub_id_becomes_a_local_folder(
    path: str, trust: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = fake_hub(monkeypatch, lambda: str(checkpoint))
    model = load(path, revision="abc", trust_remote_code=trust)
    assert model.folder == checkpoint
    (call,) = calls
    assert (call["repo"], call["revision"]) == (path, "abc")
    assert ("*.py" in call["allow_patterns"]) is trust
    assert not {"*.bin", "*"} & set(call["allow_patterns"])


def raise_error(error: Exception) -> Callable[..., str]:
    def answer() -> str:
        raise error

    return answer


def make_hub_error(kind: type[Exception]) -> Exception:
    """The hub's own errors want an HTTP response; their class is what matters here."""
    error = kind.__new__(kind)
    Exception.__init__(error, "401 Client Error.\n\nMany lines\nfollow.")
    return error


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (make_hub_error(hub_errors.GatedRepoError), "`org/name` cannot be downloaded; it is gated: accept its licence"),
        (make_hub_error(hub_errors.RepositoryNotFoundError), "no model `org/name`; there is neither such a folder nor"),
        (make_hub_error(hub_errors.RevisionNotFoundError), r"has no revision `None`; check `model\.revision`"),
        (
            hub_errors.LocalEntryNotFoundError("no\nconnection"),
            r"cannot be downloaded \(no connection\); check the net",
        ),
        (hub_errors.OfflineModeIsEnabled("offline"), r"cannot be downloaded \(offline\); check the network"),
        (RuntimeError(), r"cannot be downloaded \(RuntimeError\)"),
    ],
)
def test_hub_failures_are_one_line(error: Exception, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_hub(monkeypatch, raise_error(error))
    expect_refusal("org/name", message)


@pytest.mark.parametrize("name", ["stories260K", "tinystories-656k", "tinystories-2.8M"])
def test_trained_models(name: str) -> None:
    if not (TRAINED / name).is_dir():
        pytest.skip(f"the trained model {TRAINED / name} is not here")
    model = load(TRAINED / name)
    assert model.tokenizer is not None and model.bos is not None
    prefix = torch.tensor([[model.bos, *model.tokenizer("Once upon a time", add_special_tokens=False)["input_ids"]]])
    told = model.decode(prefix, 24, pick_greedy)
    forced = model.logits(told[:, :-1], 24).argmax(-1)
    assert torch.equal(forced, told[:, -24:])
    assert len(set(told[0, -24:].tolist())) > 8
    assert len(model.content_hash()) == 64


def test_a_copy_of_a_folder_is_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(checkpoint, tmp_path / "copy"))
    assert load(copied).content_hash() == load(checkpoint).content_hash()
