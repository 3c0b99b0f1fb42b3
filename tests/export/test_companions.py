"""Files of the base that belong to the model come along in every format; weights, adapters and code do not."""

import json
from pathlib import Path

import pytest
import torch

from compressor.settings import ExportSettings, ModelSettings
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.uniform import Uniform
from tests.support.families import save_checkpoint
from tests.support.runs import make_settings, run

KEPT = {
    "preprocessor_config.json": '{"image_processor_type": "SiglipImageProcessor"}',
    "processor_config.json": '{"processor_class": "Gemma3Processor"}',
    "video_preprocessor_config.json": "{}",
    "chat_template.jinja": "{{ messages }}",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "generation_config.json": '{"temperature": 0.9, "top_p": 0.6}',
    "merges.txt": "a b",
    "spiece.model": "of a tokenizer",
    "base.tiktoken": "of a tokenizer",
    "LICENSE": "free",
    "NOTICE.txt": "of others",
    "USE_POLICY.md": "for good",
}
LEFT = (
    "pytorch_model.bin", "consolidated.safetensors", "model.onnx", "other.gguf", "optimizer.pt", "training_args.bin",
    "adapter_model.safetensors", "adapter_config.json", "model.safetensors.index.json", "hf_quant_config.json",
    "modeling_own.py", "tokenization_own.py", "run.sh", "original/params.json", ".git/config.json",
)  # fmt: skip


@pytest.mark.parametrize(
    ("form", "stream", "gguf"),
    [("dense", False, False), ("dense", True, False), ("compressed-tensors", False, True)],
)
def test_files_of_the_base_come_along_in_every_format(form: str, stream: bool, gguf: bool, tmp_path: Path) -> None:
    base = save_checkpoint("llama", tmp_path / "base", torch.bfloat16, with_tokenizer=True)
    for name, text in (KEPT | dict.fromkeys(LEFT, "{}")).items():
        (base / name).parent.mkdir(exist_ok=True)
        (base / name).write_text(text)
    settings = make_settings(
        Uniform(),
        Int8(),
        model=ModelSettings(path=str(base), stream=stream),
        export=ExportSettings(format=form, gguf=gguf, verify=False),
    )
    record = run(tmp_path / "run", settings)
    saved = tmp_path / "run" / "model"
    assert record.export is not None and record.export.format == form
    assert {name: (saved / name).read_text() for name in KEPT} == KEPT
    assert [name for name in LEFT if (saved / name).exists()] == []
    (note,) = [note for note in record.notes if note.startswith("Copied from the base")]
    assert all(name in note for name in KEPT)
    # Nothing beside the model: a GGUF file needs none of them.
    assert {
        path.name for path in (tmp_path / "run").iterdir() if path.name in {Path(name).name for name in KEPT}
    } == set()
    assert "quantization_config" in json.loads((saved / "config.json").read_text()) or form == "dense"


def test_what_a_link_brings_in_from_elsewhere_is_not_copied(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A stranger's folder must not put a file of the user into a model that is published.

    The files of a download are links into the hub's cache, and are copied as files.
    """
    repository = tmp_path / "models--one--tiny"
    base = save_checkpoint("llama", repository / "snapshots" / "1", torch.bfloat16, with_tokenizer=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "1a").write_text("free")
    (base / "LICENSE").symlink_to("../../blobs/1a")
    (tmp_path / "id_rsa").write_text("secret")
    (base / "notes.txt").symlink_to(tmp_path / "id_rsa")
    (base / "inside.txt").symlink_to("config.json")
    settings = make_settings(
        Uniform(), Int8(), model=ModelSettings(path=str(base)), export=ExportSettings(verify=False)
    )
    run(tmp_path / "run", settings)
    saved = tmp_path / "run" / "model"
    assert (saved / "LICENSE").read_text() == "free" and (saved / "inside.txt").is_file()
    assert not (saved / "notes.txt").exists()
    assert f"{base / 'notes.txt'} is a link that leads out of the model's folder" in caplog.text
