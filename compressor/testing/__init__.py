"""For tests of plugins: a contract suite for each kind of plugin, and a tiny checkpoint.

>>> class TestMine(CompressorContract):
...     instance = Mine()

Each test of a suite checks a promise that the rest of the project relies on. If a constructor call is not enough,
override the fixture `plugin` in place of the attribute `instance`. It needs pytest.
"""

from compressor.testing.checkpoint import make_tiny_checkpoint
from compressor.testing.compressors import CompressorContract
from compressor.testing.metrics import MetricContract
from compressor.testing.problems import DryRun
from compressor.testing.recoveries import RecoveryContract
from compressor.testing.schedules import ScheduleContract

__all__ = [
    "CompressorContract",
    "DryRun",
    "MetricContract",
    "RecoveryContract",
    "ScheduleContract",
    "make_tiny_checkpoint",
]
