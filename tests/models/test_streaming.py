"""Streamed models: the same model as loaded whole, whose weights stay on disk, where nothing ever changes."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from compressor.errors import CompressorError, ConfigError, ModelError
from compressor.evaluation.layer_replay import LayerReplay
from compressor.export import save_dense
from compressor.models import Model, load_model
from compressor.models.components import find_layers
from compressor.models.gradients import LayerwiseGradients
from compressor.models.layer_prefetch import ROOM, find_streamed
from compressor.models.loading import quiet_loading
from compressor.settings import ComponentSettings, Device, DType, ModelSettings
from tests.support.families import FAMILIES, each, make_network, save_checkpoint
from tests.support.gradients import draw_tokens, walk_gradients
from tests.support.prefetch import CPU, settle
from tests.support.slow import rarely

MADE_OVER = {"mixtral", "qwen3_moe"}
"""Families whose experts transformers stacks as it loads them."""
STREAMED = each(family for family in FAMILIES if family not in MADE_OVER)


def load(folder: Path, components: ComponentSettings | None = None, **settings: Any) -> Model:  # noqa: ANN401
    return load_model(ModelSettings(str(folder), **{"device": Device.cpu, **settings}), components)


def stream(folder: Path, components: ComponentSettings | None = None, **settings: Any) -> Model:  # noqa: ANN401
    return load(folder, components, stream=True, **settings)


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def expect_refusal(folder: Path, kind: type[CompressorError], message: str, **settings: Any) -> None:  # noqa: ANN401
    with pytest.raises(kind, match=message) as caught:
        stream(folder, **settings)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def is_mapped(model: Model, parameter: Tensor) -> bool:
    assert model.mapped_weights is not None
    return parameter.data_ptr() in {tensor.data_ptr() for tensor in model.mapped_weights.tensors.values()}


@pytest.fixture(params=STREAMED)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    name: str = request.param
    save_checkpoint(name, tmp_path / "model", with_tokenizer=True)
    return name


@pytest.fixture
def deep(tmp_path: Path) -> Path:
    """A llama of five layers."""
    return save_checkpoint("llama", tmp_path / "deep", num_hidden_layers=5)


def test_a_streamed_model_is_the_model(family: str, tmp_path: Path) -> None:
    whole, streamed = load(tmp_path / "model"), stream(tmp_path / "model")
    tokens = draw_tokens(3)
    assert torch.equal(streamed.logits(tokens, 5), whole.logits(tokens, 5))
    assert torch.equal(streamed.hidden(tokens, 5), whole.hidden(tokens, 5))
    assert streamed.components == whole.components and streamed.content_hash() == whole.content_hash()
    assert all(torch.equal(streamed.read(name), whole.read(name)) for name in whole.components)
    for name in ("device", "dtype", "vocabulary", "context", "bos", "adds_bos", "stored_dtype", "stored_bytes"):
        assert getattr(streamed, name) == getattr(whole, name), name
    assert streamed.base_parameters == whole.base_parameters
    assert all(is_mapped(streamed, parameter) for parameter in streamed.network.parameters())
    assert not streamed.network.training and not any(p.requires_grad for p in streamed.network.parameters())
    assert not any(tensor.is_meta for tensor in streamed.network.buffers())


def test_files_stay_as_they_are(family: str, tmp_path: Path) -> None:
    before = read_files(tmp_path / "model")
    whole, streamed = load(tmp_path / "model"), stream(tmp_path / "model")
    tokens = draw_tokens(2)
    for name in whole.components:
        weights = {name: whole.read(name) * 0.5}
        with whole.swapped(weights), streamed.swapped(weights) as originals:
            assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
            assert torch.equal(originals[name], weights[name] * 2)
    assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
    for model in (whole, streamed):
        for name in model.components:
            model.write(name, model.read(name) * 0.5)
    assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
    assert read_files(tmp_path / "model") == before


def test_exports_are_the_same(family: str, tmp_path: Path) -> None:
    whole, streamed = load(tmp_path / "model"), stream(tmp_path / "model")
    name = list(whole.components)[-1]
    for model, folder in ((whole, "whole"), (streamed, "streamed")):
        model.write(name, model.read(name) * 0.5)
        assert model.network.name_or_path == str(tmp_path / "model")
        save_dense(model, tmp_path / folder, {}, {})
    assert read_files(tmp_path / "streamed") == read_files(tmp_path / "whole")


def test_gradients_are_the_same(family: str, tmp_path: Path) -> None:
    whole, streamed = load(tmp_path / "model"), stream(tmp_path / "model")
    names, tokens = list(whole.components), draw_tokens(2)
    expected, found = walk_gradients(whole, names, tokens), walk_gradients(streamed, names, tokens)
    assert all(torch.equal(found[name], expected[name]) for name in names)


@pytest.mark.parametrize("family", sorted(MADE_OVER))
def test_what_transformers_makes_over_is_refused(family: str, tmp_path: Path) -> None:
    save_checkpoint(family, tmp_path)
    expect_refusal(
        tmp_path, ModelError, "experts.* is not stored in .* as the network holds it, .*; load it once without"
    )


@pytest.mark.parametrize("family", sorted(MADE_OVER))
def test_and_streamed_once_it_is_saved_as_the_network_has_it(family: str, tmp_path: Path) -> None:
    with quiet_loading(CPU):
        make_network(family).save_pretrained(tmp_path, save_original_format=False)
    whole, streamed, tokens = load(tmp_path), stream(tmp_path), draw_tokens(2)
    assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
    settle(streamed)
    names = list(whole.components)
    expected, found = walk_gradients(whole, names, tokens), walk_gradients(streamed, names, tokens)
    assert all(torch.equal(found[name], expected[name]) for name in names)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_the_dtype_is_the_stored_one(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    save_checkpoint(family, tmp_path, dtype)
    name = str(dtype).removeprefix("torch.")
    whole, streamed, tokens = load(tmp_path, dtype=DType[name]), stream(tmp_path), draw_tokens(2)
    assert streamed.dtype == dtype and torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
    assert torch.equal(stream(tmp_path, dtype=DType[name]).logits(tokens, 4), whole.logits(tokens, 4))
    expect_refusal(tmp_path, ConfigError, f"`model.dtype` must be auto or {name} .* got float32", dtype=DType.float32)


def edit_weights(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_tensors_of_another_dtype_are_cast(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path, torch.bfloat16)
    edit_weights(
        tmp_path, lambda t: t.update({name: t[name].float() for name in t if "norm" in name or "k_proj" in name})
    )
    whole, streamed, tokens = load(tmp_path, dtype=DType.bfloat16), stream(tmp_path), draw_tokens(2)
    assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
    assert not is_mapped(streamed, streamed.weight_views["model.layers.0.self_attn.k_proj"].parameter)
    assert is_mapped(streamed, streamed.weight_views["model.layers.0.self_attn.q_proj"].parameter)
    assert streamed.components == whole.components


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn])
def test_a_dtype_that_nothing_is_computed_in(dtype: torch.dtype, tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    edit_weights(tmp_path, lambda t: t.update({name: t[name].to(dtype) for name in t}))
    expect_refusal(tmp_path, ModelError, "computes in the dtype that is stored, which must be .* got F")


def test_a_dtype_that_torch_does_not_have(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    edit_weights(tmp_path, lambda t: t.update({"mtp.extra": torch.zeros(4).to(torch.float8_e8m0fnu)}))
    expect_refusal(tmp_path, ModelError, "`mtp.extra` of .* is stored as F8_E8M0; `model.stream` takes F64")


def test_shards(tmp_path: Path) -> None:
    with quiet_loading(CPU):
        make_network("llama").save_pretrained(tmp_path, max_shard_size="20KB")
    whole, streamed, tokens = load(tmp_path), stream(tmp_path), draw_tokens(2)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
    assert all(is_mapped(streamed, parameter) for parameter in streamed.network.parameters())


def test_a_checkpoint_of_the_bare_body(tmp_path: Path) -> None:
    save_checkpoint("gpt2", tmp_path)

    def strip(tensors: dict[str, Tensor]) -> None:
        bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
        tensors.clear()
        tensors.update(bare)

    edit_weights(tmp_path, strip)
    whole, streamed, tokens = load(tmp_path), stream(tmp_path), draw_tokens(2)
    assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
    assert all(is_mapped(streamed, parameter) for parameter in streamed.network.parameters())


def test_tensors_that_are_not_aligned_are_copied(tmp_path: Path) -> None:
    path = save_checkpoint("llama", tmp_path) / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    path.write_bytes(struct.pack("<Q", length + 1) + content[8 : 8 + length] + b" " + content[8 + length :])
    whole, streamed, tokens = load(tmp_path), stream(tmp_path), draw_tokens(2)
    assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
    assert all(parameter.data_ptr() % 4 == 0 for parameter in streamed.network.parameters())


def test_tied_weights_are_one(tmp_path: Path) -> None:
    save_checkpoint("qwen2", tmp_path, tie_word_embeddings=True)
    streamed = stream(tmp_path, ComponentSettings(["embed"]))
    assert streamed.network.get_output_embeddings().weight is streamed.network.get_input_embeddings().weight
    assert streamed.head_is_component
    edit_weights(tmp_path, lambda t: t.update({"lm_head.weight": t.pop("model.embed_tokens.weight")}))
    assert torch.equal(stream(tmp_path).logits(draw_tokens(1), 2), streamed.logits(draw_tokens(1), 2))


def test_missing_and_unsound_tensors_are_refused_as_ever(tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path)
    edit_weights(tmp_path, lambda tensors: tensors["lm_head.weight"].fill_(torch.nan))
    expect_refusal(tmp_path, ModelError, r"`lm_head\.weight` of .* holds NaN or infinity")
    edit_weights(tmp_path, lambda tensors: tensors.pop("lm_head.weight"))
    expect_refusal(tmp_path, ModelError, r"lacks 1 tensors that its config asks for, `lm_head\.weight` first")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    expect_refusal(tmp_path, ModelError, "is quantized already")
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    expect_refusal(tmp_path, ModelError, r"`.*` of .* must have the shape \[.*64.*\] by its config")


MEMORY = """
import sys, threading, time
from pathlib import Path
from compressor.evaluation.layer_replay import LayerReplay
from compressor.models import load_model
from compressor.settings import ModelSettings

def read_anonymous():
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024

peaks, done = [0], threading.Event()
def watch():
    while not done.wait(0.001):
        peaks[-1] = max(peaks[-1], read_anonymous())

model = load_model(ModelSettings(sys.argv[1]))  # what comes with a first use is not counted
LayerReplay(model)
start = read_anonymous()
watcher = threading.Thread(target=watch)
watcher.start()
model = load_model(ModelSettings(sys.argv[2], stream=sys.argv[3] == "stream"))
peaks.append(0)
for name in model.components:
    with model.swapped({name: model.read(name) * 0.5}):
        pass
time.sleep(0.01)
done.set()
watcher.join()
print(peaks[0] - start, peaks[1] - start, read_anonymous() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_memory(dtype: torch.dtype, tmp_path: Path) -> None:
    """Memory that is no file's, in units of the checkpoint, while it is loaded and while components are swapped."""
    sizes = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 4, "initializer_range": 0.02}
    save_checkpoint("llama", tmp_path / "small")
    save_checkpoint("llama", tmp_path / "large", dtype, **sizes)
    size = (tmp_path / "large" / "model.safetensors").stat().st_size
    assert size > 50e6 * dtype.itemsize
    found = {}
    for mode in ("stream", "whole"):
        arguments = [sys.executable, "-c", MEMORY, str(tmp_path / "small"), str(tmp_path / "large"), mode]
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000"}  # what is freed is given back at once
        result = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment)
        found[mode] = [int(word) / size for word in result.stdout.split()]
    loading, swapping, after = found["stream"]
    assert loading < 0.4 and swapping < 0.4 and after < 0.15, found
    if dtype is torch.float32:  # transformers maps what it need not cast, but every swap takes pages, and keeps them
        assert found["whole"][2] > 0.9, found
    else:
        assert found["whole"][0] > 1.8, found


# LayerPrefetch: the layers come to the device, which here is ordinary memory, two at a time.


def find_resident(model: Model) -> list[int]:
    """The layers whose parameters are on the device, all of them; every other layer has all of its own at home."""
    found = []
    for index, layer in enumerate(find_layers(model.network)[1]):
        (mapped,) = {is_mapped(model, parameter) for parameter in layer.parameters()}
        found += [] if mapped else [index]
    return found


class Courier(Executor):
    """Copies a layer as soon as it is asked to, in place of a thread; knows which copies are still in memory."""

    def __init__(self) -> None:
        self.copies: list[tuple[int, StorageWeakRef]] = []

    def submit(self, fetch: Callable[..., Any], index: int, *arguments: Any) -> Future[Any]:  # noqa: ANN401
        future: Future[Any] = Future()
        future.set_result(fetch(index, *arguments))
        self.note(index, future.result().tensors)
        return future

    def note(self, index: int, tensors: Iterable[Tensor]) -> None:
        self.copies += [(index, StorageWeakRef(tensor.untyped_storage())) for tensor in tensors]

    def find_held(self) -> list[int]:
        """The layers of which a copy takes memory."""
        return sorted({index for index, copy in self.copies if not copy.expired()})


def watch_layers(model: Model, courier: Courier) -> list[tuple[int, list[int]]]:
    """Which layer's modules ran, and of which layers there were copies in memory; asserts that these are not too many,
    and that no module runs on weights at home."""
    layers = find_layers(model.network)[1]
    seen: list[tuple[int, list[int]]] = []

    def note(index: int, module: nn.Module, inputs: object) -> None:
        resident = find_resident(model)
        for number in resident:
            courier.note(number, (parameter.data for parameter in layers[number].parameters()))
        held = courier.find_held()
        assert index in resident and {*resident} <= {*held} and len(held) <= ROOM
        if not seen or seen[-1][0] != index:
            seen.append((index, held))

    for index, layer in enumerate(layers):
        for module in layer.modules():
            if module is not layer:
                module.register_forward_pre_hook(lambda module, inputs, index=index: note(index, module, inputs))
    return seen


def test_a_resident_model_is_the_model(family: str, tmp_path: Path) -> None:
    before = read_files(tmp_path / "model")
    whole, streamed, tokens = load(tmp_path / "model"), stream(tmp_path / "model"), draw_tokens(3)
    settle(streamed)
    assert torch.equal(streamed.logits(tokens, 5), whole.logits(tokens, 5))
    for name in whole.components:
        weights = {name: whole.read(name) * 0.5}
        with whole.swapped(weights), streamed.swapped(weights) as originals:
            assert torch.equal(streamed.logits(tokens, 4), whole.logits(tokens, 4))
            assert torch.equal(originals[name], weights[name] * 2) and len(list(originals)) == len(originals) == 1
        assert torch.equal(streamed.read(name), whole.read(name))
    names = list(whole.components)
    expected, found = walk_gradients(whole, names, tokens), walk_gradients(streamed, names, tokens)
    assert all(torch.equal(found[name], expected[name]) for name in names)
    assert torch.equal(streamed.logits(tokens, 5), whole.logits(tokens, 5))
    assert LayerReplay(streamed).spans == LayerReplay(whole).spans
    assert read_files(tmp_path / "model") == before


def test_layers_come_and_go_with_the_walk(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens, courier = stream(deep), draw_tokens(2), Courier()
    monkeypatch.setattr("compressor.models.layer_prefetch.ThreadPoolExecutor", lambda *arguments: courier)
    settle(model)
    seen = watch_layers(model, courier)
    model.logits(tokens, 2)
    assert seen == [(0, [0, 1]), (1, [1, 2]), (2, [2, 3]), (3, [3, 4]), (4, [3, 4])]
    seen.clear()
    LayerwiseGradients(model, list(model.components)).run_backward(
        tokens, 5, lambda logits: logits.square().mean((1, 2)), lambda *_: None
    )
    assert [index for index, _ in seen] == [*range(5), *range(5), 3, 2, 1, 0]
    assert seen[-3:] == [(2, [1, 2]), (1, [0, 1]), (0, [0, 1])]


def test_stand_ins_for_layers_bring_nothing(deep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = stream(deep), draw_tokens(2)
    residency = settle(model)
    replay = LayerReplay(model)
    monkeypatch.setattr(residency, "bring", lambda index: pytest.fail("a layer is brought that does not run"))
    entry = replay.enter(tokens)
    replay.leave(entry, entry.hidden, 3)


@pytest.mark.parametrize("where", ["at home", "resident", "on its way"])
@pytest.mark.parametrize("leaves", [False, True])
def test_writes_are_kept_wherever_the_layer_is(where: str, leaves: bool, deep: Path) -> None:
    whole, model, tokens = load(deep), stream(deep), draw_tokens(2)
    residency = settle(model)
    bring = {"at home": 4, "resident": 2, "on its way": 1}[where]
    name = "model.layers.2.mlp.down_proj"
    residency.bring(bring)
    assert (2 in find_resident(model)) is (where == "resident")
    half = whole.read(name) * 0.5
    for weight in (half, half * 0, -half * 0):
        whole.write(name, weight)
        model.write(name, weight)
        if leaves:
            residency.bring(0)
            assert 2 not in find_resident(model)
        assert torch.equal(model.logits(tokens, 3), whole.logits(tokens, 3))
        assert torch.equal(model.read(name).view(torch.int32), weight.view(torch.int32))
        residency.bring(bring)


@pytest.mark.parametrize("before", [0, 2, *rarely([1, 4])])
@pytest.mark.parametrize("within", [[], [0], [2, 0], *rarely([[1], [2], [1, 2, 3]])])
@pytest.mark.parametrize("after", [2, 4])
def test_trials_leave_nothing_behind(before: int, within: list[int], after: int, deep: Path) -> None:
    whole, model, tokens = load(deep), stream(deep), draw_tokens(1)
    residency = settle(model)
    name = "model.layers.2.mlp.down_proj"
    residency.bring(before)
    with model.swapped({name: whole.read(name) * 0.5}):
        for index in within:
            residency.bring(index)
        assert torch.equal(model.read(name), whole.read(name) * 0.5)
    residency.bring(after)
    assert torch.equal(model.read(name), whole.read(name))
    assert torch.equal(model.logits(tokens, 3), whole.logits(tokens, 3))


def test_what_several_layers_share_stays_on_the_device() -> None:
    network = make_network("llama", num_hidden_layers=3)
    layers = find_layers(network)[1]
    layers[2].mlp.up_proj.weight = layers[0].mlp.up_proj.weight
    network.lm_head.weight = layers[1].mlp.down_proj.weight
    streamed = [[id(parameter) for parameter in parameters] for parameters in find_streamed(network, layers)]
    assert id(layers[0].mlp.up_proj.weight) not in streamed[0] + streamed[2]
    assert id(layers[1].mlp.down_proj.weight) not in streamed[1]
    assert len(streamed[0]) == len(streamed[1]) == len(streamed[2]) == len(list(layers[0].parameters())) - 1
