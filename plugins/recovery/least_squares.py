"""Recovery in closed form: the remaining weights of every row solve a least squares problem."""

from dataclasses import dataclass
from typing import ClassVar

from compressor.contracts import Recovery, Trainer, TrainingTexts

from .options import require_positive


@dataclass
class LeastSquares(Recovery):
    """Sets the remaining weights of each row to those that change the row's outputs least, layer by layer.

    For the base's row w and its remaining weights S, w′_S solves (H_SS + λI) w′_S = (H w)_S + λ w_S, with H the second
    moment of the inputs that the component has in the compressed model, and λ `damping` times the mean of H's diagonal.
    It takes no training, and for the inputs the texts of the search.
    """

    damping: float = 0.01

    name: ClassVar[str] = "least_squares"

    def check_options(self) -> None:
        require_positive("damping", self.damping)

    def texts(self) -> TrainingTexts | None:
        return None

    def recover(self, trainer: Trainer) -> None:
        trainer.solve_least_squares(self.damping)
