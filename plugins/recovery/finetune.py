"""Recovery by training all weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.contracts import Loss, Recovery, Trainer, Training, TrainingTexts

from .options import list_unused_parts, require_between, require_count, require_one_source, require_positive


@dataclass
class Finetune(Recovery):
    """Trains all weights by AdamW: first with pruned weights held at zero, then a few steps in which they may grow.

    After `steps` updates with masks, `released` more let pruned weights take other values; then they are zero again.
    What is minimised is `loss`, over `windows` texts of `tokens` tokens from the file `path`, from the hub's data set
    `dataset` (`subset`, `split`), or sampled from the base. `compressor.contracts.Training` explains the other
    options.

    Source: the rounds of Deiseroth et al., Divergent Token Metrics, NAACL 2024, which have 450 and 50 steps;
    distillation after Hinton et al., Distilling the Knowledge in a Neural Network, 2015 (arXiv 1503.02531).
    """

    steps: int = 450
    released: int = 50
    loss: Loss = Loss.distillation
    temperature: float = 1.0
    mix: float = 1.0
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    batch: int = 16
    windows: int = 1024
    tokens: int = 128
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"
    embeddings: bool = False
    checkpointing: bool = False

    name: ClassVar[str] = "finetune"

    def check_options(self) -> None:
        for key in ("steps", "batch", "windows"):
            require_count(key, getattr(self, key))
        require_count("tokens", self.tokens, least=2)
        require_one_source(self.path, self.dataset)
        require_count("released", self.released, least=0)
        for key in ("temperature", "learning_rate", "clip"):
            require_positive(key, getattr(self, key))
        for key in ("mix", "warmup", "weight_decay"):
            require_between(key, getattr(self, key))

    def list_unused(self) -> Mapping[str, str]:
        unused = dict(list_unused_parts(self.dataset))
        return unused | ({"temperature": "loss", "mix": "loss"} if self.loss is Loss.language_modelling else {})

    def texts(self) -> TrainingTexts:
        return TrainingTexts(self.windows, self.tokens, self.path, self.dataset, self.subset, self.split)

    def recover(self, trainer: Trainer) -> None:
        trainer.train(
            Training(
                steps=self.steps + self.released,
                released=self.released,
                batch=self.batch,
                loss=self.loss,
                temperature=self.temperature,
                mix=self.mix,
                learning_rate=self.learning_rate,
                warmup=self.warmup,
                weight_decay=self.weight_decay,
                clip=self.clip,
                embeddings=self.embeddings,
                checkpointing=self.checkpointing,
            )
        )
