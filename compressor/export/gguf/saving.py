"""Writes a model as one GGUF file."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import gguf

from compressor.artifacts.disk_space import open_unnamed
from compressor.artifacts.files import replaced_file
from compressor.contracts import QuantizedMatrix
from compressor.export.folder import Exported, choose_stored
from compressor.export.gguf import families
from compressor.export.gguf.blocks import store_dense, store_quantized
from compressor.export.gguf.vocabulary import Vocabulary, read_vocabulary
from compressor.export.packable_modules import NOT_INTEGERS, note_dense
from compressor.models import Model

GGUF = "gguf"
"""The format's name."""
ROUNDS = (
    "llama.cpp rounds the inputs of packed weights to 8 bits, so its outputs from model.gguf are close to those that "
    "were scored, but not equal; transformers gives exactly the scored outputs from this file."
)


def find_obstacle(model: Model) -> str | None:
    """Why the model cannot be written; None if it can."""
    vocabulary = find_vocabulary(model)
    names = [name for name, _ in model.network.named_parameters()]
    return families.find_obstacle(model.network.config, names) or (vocabulary if isinstance(vocabulary, str) else None)


def find_vocabulary(model: Model) -> Vocabulary | str:
    """The vocabulary of the tokenizer (empty if there is none), or the reason why it cannot be written."""
    if model.tokenizer is None:
        return Vocabulary("no_vocab")
    return read_vocabulary(model.tokenizer, model.network.config.vocab_size)


def save(model: Model, path: Path, quantized: Mapping[str, QuantizedMatrix | None]) -> Exported:
    """Write everything to one file at `path`, all or nothing; raises OutputError."""
    config, vocabulary = model.network.config, find_vocabulary(model)
    assert isinstance(vocabulary, Vocabulary), vocabulary
    family = families.FAMILIES[config.model_type]
    components = {id(weight_view.parameter): name for name, weight_view in model.weight_views.items()}
    bits, reasons = dict[str, float](), dict[str, str]()
    with written(path, gguf.MODEL_ARCH_NAMES[family.architecture]) as writer:
        families.describe(config, writer)
        vocabulary.write(writer)
        writer.add_add_bos_token(model.adds_bos)
        for name, parameter in model.network.named_parameters():
            component, weight = components.get(id(parameter), ""), parameter.detach().cpu()
            matrix = quantized.get(component)
            packed = NOT_INTEGERS if matrix is None else store_quantized(matrix, weight)
            reason = packed if isinstance(packed, str) else ""
            stored = store_dense(weight, choose_stored(model, weight)) if isinstance(packed, str) else packed
            stored = stored.ordered(families.order_rows(name, len(weight), config))
            writer.add_tensor(family.name_tensor(name, config), stored.content, raw_dtype=stored.kind)
            if component:
                bits[component] = 8 * stored.content.nbytes / weight.numel()
                reasons[component] = reason
    as_integers = frozenset(name for name, reason in reasons.items() if not reason)
    dense = note_dense(
        {name: reason for name, reason in reasons.items() if reason and name in quantized}, f"in {path.name}"
    )
    notes = (*([ROUNDS] if as_integers else []), *dense)
    return Exported(path, GGUF, model.dtype, path.stat().st_size, bits, as_integers, notes=notes)


@contextmanager
def written(path: Path, architecture: str) -> Iterator[gguf.GGUFWriter]:
    """A writer whose file replaces `path` when everything is added; raises OutputError."""
    with replaced_file(path) as partial, open_unnamed(path.parent) as collected:
        writer = gguf.GGUFWriter(partial, architecture, use_temp_file=True)
        # Tensors are collected in a file without a name beside the result; the system's folder may be small.
        writer.temp_file = collected
        try:
            yield writer
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
