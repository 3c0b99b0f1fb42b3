"""How fast training between rounds is, against transformers' Trainer.

    python -m tests.benchmarks training [--model tiny] [--steps 10] [--batch 16] [--repeats 5]

Both train all weights but embedding and LM head of the same model on the same windows of 128 tokens in float32, by
fused AdamW with warm-up and cosine, and clip gradients; Trainer begins its warm-up at a rate of zero. `with masks`
holds half of every matrix at zero, and `distillation` also asks the base at every step. The arms take turns, and
seconds are medians; mean losses show that the first two do the same.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments

from compressor.contracts import Loss, Training
from compressor.data.sampling import sample_sequences
from compressor.models import Model, load_model
from compressor.recovery.fine_tuning import FineTuning, choose_windows, needs_base
from compressor.recovery.trained_weights import TrainedWeights
from compressor.recovery.training_log import TrainingLog
from compressor.settings import DType, ModelSettings

from .runs import find_model

TOKENS = 128
WARMUP = 0.1
OURS, TRAINER = "language modelling", "Trainer, language modelling"


class Windows(Dataset[dict[str, Tensor]]):
    """The windows of a training in the order in which ours takes them."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class InOrder(Trainer):
    """A Trainer that does not shuffle, because its data are shuffled."""

    def _get_train_sampler(self, *arguments: Any) -> torch.utils.data.Sampler[int]:  # noqa: ANN401 - transformers' own
        return torch.utils.data.SequentialSampler(arguments[0] if arguments else self.train_dataset)


def load(model: str) -> Model:
    return load_model(ModelSettings(path=find_model(model), dtype=DType.float32))


def train_by_ours(model: str, tokens: Tensor, training: Training, is_pruned: bool) -> tuple[float, float]:
    """Seconds of all steps, and the mean loss."""
    trained, base = load(model), load(model) if needs_base(training) else None
    names = frozenset(trained.components) if is_pruned else frozenset()
    for name in names:
        weight = trained.read(name)
        trained.write(name, weight.masked_fill(weight.abs() <= weight.abs().median(), 0))
    weights = TrainedWeights(trained, names, frozenset())
    losses: list[float] = []
    log = TrainingLog("training", training.steps, training.learning_rate, lambda point: losses.append(point.loss))
    optimizer = weights.make_optimizer(trained.network, training, embeddings=False)
    tuning = FineTuning(trained, base, tokens, training, optimizer, seed=0)
    began = time.perf_counter()
    for _ in tuning.take_steps(0, log):
        pass
    return time.perf_counter() - began, statistics.mean(losses)


def train_by_trainer(model: str, tokens: Tensor, training: Training, is_pruned: bool) -> tuple[float, float]:
    """The same by transformers' Trainer."""
    network: PreTrainedModel = load(model).network
    network.requires_grad_(True)
    for module in (network.get_input_embeddings(), network.get_output_embeddings()):
        module.requires_grad_(False)
    order = torch.cat([choose_windows(tokens, training.batch, step, 0) for step in range(training.steps)])
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=training.steps, per_device_train_batch_size=training.batch, optim="adamw_torch_fused",
            learning_rate=training.learning_rate, lr_scheduler_type="cosine",
            warmup_steps=round(WARMUP * training.steps), weight_decay=training.weight_decay,
            max_grad_norm=training.clip, save_strategy="no", logging_strategy="no", report_to="none", disable_tqdm=True,
            use_cpu=True,
        )  # fmt: skip
        trainer = InOrder(network, arguments, train_dataset=Windows(order))
        began = time.perf_counter()
        done = trainer.train()
        seconds = time.perf_counter() - began
    return seconds, done.training_loss


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args(arguments)
    tokens = sample_sequences(load(options.model), 64, TOKENS, 0)
    plain = Training(options.steps, batch=options.batch, loss=Loss.language_modelling, warmup=WARMUP)
    distilled = replace(plain, loss=Loss.distillation)
    arms: dict[str, Callable[[], tuple[float, float]]] = {
        TRAINER: lambda: train_by_trainer(options.model, tokens, plain, is_pruned=False),
        OURS: lambda: train_by_ours(options.model, tokens, plain, is_pruned=False),
        "language modelling, with masks": lambda: train_by_ours(options.model, tokens, plain, is_pruned=True),
        "distillation, with masks": lambda: train_by_ours(options.model, tokens, distilled, is_pruned=True),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in arms}
    for _ in range(options.repeats):
        for name, train in arms.items():
            found[name].append(train())
    trained = options.steps * options.batch * TOKENS
    ratios = [theirs[0] / ours[0] for theirs, ours in zip(found[TRAINER], found[OURS], strict=True)]
    for name, runs in found.items():
        seconds = statistics.median(seconds for seconds, _ in runs)
        row = {"training": name, "tokens per second": trained / seconds, "seconds per step": seconds / options.steps}
        row["loss"] = runs[0][1]
        yield row | ({"times Trainer": statistics.median(ratios)} if name == OURS else {})
