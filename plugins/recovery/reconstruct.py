"""Recovery by training one block after the other."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from compressor.contracts import Reconstruction, Recovery, Trainer, TrainingTexts

from .options import list_unused_parts, require_between, require_count, require_one_source, require_positive


@dataclass
class Reconstruct(Recovery):
    """Trains the attention and the MLP of each layer to give what the base's give, for the inputs that they have now.

    There are `steps` updates by AdamW for each block, over `windows` texts of `tokens` tokens from the file `path`,
    from the hub's data set `dataset` (`subset`, `split`), or sampled from the base.
    `compressor.contracts.Reconstruction` has the formula.

    Source: A Free Lunch in LLM Compression: Revisiting Retraining after Pruning, 2025 (arXiv 2510.14444).
    """

    steps: int = 100
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.0
    batch: int = 8
    windows: int = 256
    tokens: int = 128
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"

    name: ClassVar[str] = "reconstruct"

    def check_options(self) -> None:
        for key in ("steps", "batch", "windows"):
            require_count(key, getattr(self, key))
        require_count("tokens", self.tokens, least=2)
        require_one_source(self.path, self.dataset)
        require_positive("learning_rate", self.learning_rate)
        for key in ("warmup", "weight_decay"):
            require_between(key, getattr(self, key))

    def list_unused(self) -> Mapping[str, str]:
        return list_unused_parts(self.dataset)

    def texts(self) -> TrainingTexts:
        return TrainingTexts(self.windows, self.tokens, self.path, self.dataset, self.subset, self.split)

    def recover(self, trainer: Trainer) -> None:
        trainer.reconstruct(Reconstruction(self.steps, self.batch, self.learning_rate, self.warmup, self.weight_decay))
