"""Small models that are pruned, and trainers for them."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.contracts import Context, QuantizedMatrix, Recovery
from compressor.data.reference import Reference, build_reference
from compressor.data.sampling import sample_sequences
from compressor.models import Model, load_model
from compressor.recovery.run_trainer import RunTrainer
from compressor.recovery.trained_weights import TrainedWeights, make_scales
from compressor.recovery.training_means import TrainingMeans
from compressor.settings import ComponentSettings, Device, DType, ModelSettings
from compressor_plugins.quantization.int4 import Int4
from tests.support.families import save_checkpoint
from tests.support.references import random_prefixes


def load_family(family: str, folder: Path, dtype: DType = DType.float32) -> Model:
    """A random model of a family on the CPU."""
    if not (folder / family).exists():
        save_checkpoint(family, folder / family)
    return load_model(ModelSettings(str(folder / family), device=Device.cpu, dtype=dtype))


def prune(model: Model, names: Collection[str], share: float = 0.5) -> dict[str, Tensor]:
    """Set the smallest weights of these components to zero; returns where."""
    gone = {}
    for name in names:
        weight = model.read(name)
        gone[name] = weight.abs() <= weight.abs().flatten().kthvalue(round(share * weight.numel())).values
        model.write(name, weight.masked_fill(gone[name], 0))
    return gone


def quantize(model: Model, names: Collection[str], group: int = 8) -> dict[str, QuantizedMatrix]:
    """Set these components to int4; returns their integers and scales."""
    matrices = {}
    for name in names:
        int4, component = Int4(group=group), model.components[name]
        made = int4.compress(model.read(name), int4.offer(component).levels[0], Context(component))
        assert made.quantized is not None
        model.write(name, made.dense())
        matrices[name] = made.quantized
    return matrices


def make_trainer(model: Model, folder: Path, pruned: Collection[str], **options: Any) -> RunTrainer:  # noqa: ANN401
    """A trainer of a model whose components `pruned` were pruned, on 12 windows of 10 tokens of the base.

    `quantized` are components that were quantized, by name.
    """
    settings = ModelSettings(str(model.folder), device=Device.cpu, dtype=DType[str(model.dtype).removeprefix("torch.")])
    base = load_model(settings)
    quantized: dict[str, QuantizedMatrix] = options.pop("quantized", {})
    frozen = frozenset(options.pop("frozen", ()))
    trained = TrainedWeights(model, frozenset(pruned), frozen | quantized.keys(), make_scales(model, quantized))
    key, number = options.pop("key", "key"), options.pop("round", 1)
    texts, reference = sample_sequences(base, 12, 10, 0), make_reference(base)
    means = TrainingMeans(model, texts, reference, (settings, ComponentSettings()), **options)
    return RunTrainer(means, trained, folder / "training.safetensors", key, number)


def make_reference(base: Model) -> Reference:
    return build_reference(base, random_prefixes(base), 6, None, None)


def recover(recovery: Recovery, trainer: RunTrainer) -> dict[str, Tensor]:
    """The weights after a recovery."""
    recovery.recover(trainer)
    trainer.finish(torch.float32)
    return {name: parameter.detach().clone() for name, parameter in trainer.model.network.named_parameters()}
