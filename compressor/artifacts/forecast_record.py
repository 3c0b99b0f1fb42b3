"""The data of a forecast: the layout of forecast.json."""

from dataclasses import asdict, dataclass, field
from typing import Any

from compressor.artifacts.run_record import ReferenceRecord
from compressor.contracts import Score


@dataclass
class OptionForecast:
    """One treatment of one component: packed bytes, and the predicted σ² (logits²) of this treatment alone (`cost`).

    `low` and `high` are the ends of the 95 % interval of `cost`. `expected_fdtm` is the expected FDT if nothing else is
    treated. The numbers are NaN if no token reached the component.
    """

    compressor: str
    amount: float
    bytes: float
    cost: float
    low: float
    high: float
    expected_fdtm: float


@dataclass
class MatrixForecast:
    """One component, whether a token of the prefixes reached it, and its options."""

    kind: str
    layer: int | None
    parameters: int
    reached: bool
    options: list[OptionForecast]


@dataclass
class PointForecast:
    """One size: mean amount, bytes of the checkpoint with packed components, and the expected FDT of the best plan.

    `noise` is the predicted σ, `trusted` whether the margin law holds there, `parts` the share of the weights that each
    compressor treats. `command` compresses a model to this point: with its `plan` for all compressors together, by a
    search for its amount for a single compressor. JSON omits `plan` and `command` if they are None.
    """

    amount: float
    bytes: float
    bits_per_weight: float
    noise: float
    expected_fdtm: float
    low: float
    high: float
    trusted: bool
    parts: dict[str, float]
    plan: dict[str, Any] | None = None
    command: str | None = None


@dataclass
class CheckForecast:
    """A plan of the curve that was scored on the model: predictions and measured scores.

    `additivity` is the predicted σ², a sum over components, divided by the measured σ²; None if that is 0.
    """

    amount: float
    bytes: float
    predicted_noise: float
    expected_fdtm: float
    scores: dict[str, Score]
    additivity: float | None = None


@dataclass
class ForecastRecord:
    """A whole forecast. `curve` is for all compressors together, `curves` for each compressor alone."""

    config: dict[str, Any]
    versions: dict[str, str]
    command: str = "compressor forecast"
    seconds: float = 0.0
    phases: dict[str, float] = field(default_factory=dict)
    reference: ReferenceRecord | None = None
    base: dict[str, Any] = field(default_factory=dict)
    objective: str = ""
    trusted_noise: float = 0.0
    components: dict[str, MatrixForecast] = field(default_factory=dict)
    curve: list[PointForecast] = field(default_factory=list)
    curves: dict[str, list[PointForecast]] = field(default_factory=dict)
    checks: list[CheckForecast] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The layout of the file: `components` has only lists of options, `reached` is a separate entry."""
        plain = asdict(self)
        points = [*plain["curve"], *(point for points in plain["curves"].values() for point in points)]
        for point in points:
            for name in ("plan", "command"):
                if point[name] is None:
                    del point[name]
        matrices = plain.pop("components")
        return {
            "objective": self.objective,
            "cost": "what a treatment alone is predicted to add to σ², the square of the margin noise, in logits²",
            "components": {name: matrix["options"] for name, matrix in matrices.items()},
            "reached": {name: matrix["reached"] for name, matrix in matrices.items()},
            "curve": plain.pop("curve"),
            "curves": plain.pop("curves"),
            "checks": plain.pop("checks"),
            **plain,
        }
