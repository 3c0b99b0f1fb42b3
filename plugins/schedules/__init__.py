"""Built-in schedules."""

from collections.abc import Callable

from compressor import hookimpl
from compressor.contracts import Schedule

from .beam.beam import Beam
from .budget.budget import Budget
from .evolution.evolution import Evolution
from .fdt_allocation import FdtAllocation
from .global_threshold import GlobalThreshold
from .plan import ReplayedPlan
from .uniform import Uniform


@hookimpl
def register_schedules(register: Callable[[type[Schedule]], None]) -> None:
    """Register all schedules of this package."""
    for schedule in (Budget, Uniform, GlobalThreshold, FdtAllocation, Beam, Evolution, ReplayedPlan):
        register(schedule)
