"""What plugin authors inherit: a contract suite for each kind of plugin, and a tiny checkpoint to run it on.

>>> class TestMine(CompressorContract):
...     instance = Mine()

Every test of a suite states a promise that the rest of the project relies on. Where a constructor call is not enough,
override the fixture `plugin` in place of the attribute `instance`. Needs pytest.
"""

from compressor.testing.checkpoint import make_tiny_checkpoint
from compressor.testing.compressors import CompressorContract
from compressor.testing.metrics import MetricContract
from compressor.testing.problems import DryRun
from compressor.testing.schedules import ScheduleContract

__all__ = ["CompressorContract", "DryRun", "MetricContract", "ScheduleContract", "make_tiny_checkpoint"]
