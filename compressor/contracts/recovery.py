"""The contract of recoveries: training between rounds, so that the compressed model says again what the base says."""

import enum
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from compressor.contracts.guard import Guarded


class Loss(enum.Enum):
    """What training minimises, as a mean over all predicted tokens y_t. F is the base, F′ the model in training."""

    language_modelling = "language_modelling"
    """−ln p_F′(y_t)."""
    distillation = "distillation"
    """KL(p_F ‖ p_F′)."""
    margins = "margins"
    """KL(p_F ‖ p_F′) weighted by r_t / mean(r), where r_t is the base's second largest probability divided by its
    largest: where that is near 1, a small change makes another token the most likely one."""


@dataclass(frozen=True)
class Training:
    """Training of the whole model by AdamW, with linear warm-up and then a cosine that ends at zero.

    There are `steps` updates, each on `batch` windows of text. Of these, the last `released` let pruned weights take
    other values; afterwards they are zero again. Distillation divides logits by the `temperature` τ and multiplies its
    loss by τ²; `mix` is the share of the distillation loss, the rest is language modelling. `warmup` is a share of the
    steps. The norm of the gradient of all weights is clipped to `clip`. Weight decay acts on matrices only. Embeddings
    and LM head are trained if `embeddings` is true. With `checkpointing`, layers are computed again in the backward
    pass, which takes less memory and more time.
    """

    steps: int
    released: int = 0
    batch: int = 16
    loss: Loss = Loss.distillation
    temperature: float = 1.0
    mix: float = 1.0
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.01
    clip: float = 1.0
    embeddings: bool = False
    checkpointing: bool = False


@dataclass(frozen=True)
class Reconstruction:
    """Training of one block after the other: the attention and the MLP of each layer, from the first to the last.

    A block is trained to give, for the inputs that it has in the compressed model, the outputs that the same block of
    the base has in the base: it minimises ‖f′(x′) − f(x)‖² / ‖f(x)‖². There are `steps` updates by AdamW for each
    block, each on `batch` windows of text; the other options are those of `Training`.
    """

    steps: int
    batch: int = 8
    learning_rate: float = 1e-3
    warmup: float = 0.1
    weight_decay: float = 0.0


class Trainer(Protocol):
    """What a recovery may do with the compressed model. All of it holds what compression has decided.

    Pruned weights stay exactly zero, except in `released` steps. Of components that are stored as integers, the scales
    are trained, and integers and zero points stay. Other components that take fewer bits than the checkpoint's weights
    keep their values.
    """

    @property
    def round(self) -> int:
        """Number of the round that was kept; the first is 1."""

    def train(self, training: Training) -> None:
        """Train all other weights of the model together, by its gradients."""

    def reconstruct(self, reconstruction: Reconstruction) -> None:
        """Train one block after the other. Only one block has gradients at a time, so the model may be large."""

    def solve_least_squares(self, damping: float) -> None:
        """Set the remaining weights of each row of each pruned component to the least squares solution.

        For each row w of the base's weight and the set S of its remaining weights, w′_S minimises
        (w′ − w)ᵀ H (w′ − w) + λ‖w′_S − w_S‖². H is the second moment of the inputs that the component has in the
        compressed model, and λ is `damping` times the mean of its diagonal. Layers follow each other.
        """


@dataclass(frozen=True)
class TrainingTexts:
    """The texts for training: `windows` of `tokens` tokens from the file `path`, or from a data set of the Hugging Face
    hub, a `split` and `subset` of it. With neither, they are sampled from the base.
    """

    windows: int
    tokens: int
    path: str | None = None
    dataset: str | None = None
    subset: str | None = None
    split: str = "train"

    @property
    def are_sampled(self) -> bool:
        return self.path is None and self.dataset is None


class Recovery(Guarded, ABC):
    """Trains the compressed model after each round. Torch-free to import; its fields are its options.

    The run first calls `recover` with a trainer that only counts, to find out what it will take, so `recover` must not
    do anything else than to use the trainer.
    """

    _kind = "recovery"
    name: ClassVar[str]

    @abstractmethod
    def recover(self, trainer: Trainer) -> None:
        """Train the model by the methods of `trainer`."""

    def texts(self) -> TrainingTexts | None:
        """The texts for training, which are not those of the prefixes; None if it takes no training."""
        return None

    def check_options(self) -> None:
        """Raise ConfigError for options that suit no model. It is called before the model is loaded."""

    def list_unused(self) -> Mapping[str, str]:
        """Option -> the option that leaves it without effect."""
        return {}
