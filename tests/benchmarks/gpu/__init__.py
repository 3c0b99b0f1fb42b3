"""Checks for the first minutes on a GPU: is what must be exact exact there, and what do the steps of a run cost?

    make gpu GPU_ARGUMENTS="[--device cpu] [--small] [--limit SECONDS] [--models FOLDER]"
    python -m tests.benchmarks gpu [the same]

Exactness is checked on a trained model from FOLDER, or else on the embedded one, and on a Mixtral with random weights;
memory and speed on Llamas with random weights, of 0.1, 8 and 1 billion parameters. Models are written to a temporary
folder (some 20 GB) and nothing is downloaded. A check that fails is a row with its error, and the next one runs; no
check begins after SECONDS. `passed` is null where a row only measures, or where this machine cannot do the check.
`--device cpu --small` runs all of it on a CPU in a few minutes, as a rehearsal.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from compressor.errors import ConfigError
from compressor.models.loading import choose_device
from compressor.plugins import installed
from compressor.settings import Device, DType

from . import checks_exactness as exactness
from . import checks_memory as memory
from . import checks_speed as speed
from .case import Case
from .instruments import Clock
from .machine import Peaks, check_machine
from .models import SHAPES, SMALL_SHAPES, TRAINED, Shape, find_trained, make_llama, make_mixtral
from .runner import Check, Result, run_checks


def list_exactness(trained: Case) -> Iterator[tuple[str, Check]]:
    """On a trained model, in float32 and bfloat16."""
    cases = {dtype: replace(trained, dtype=dtype) for dtype in (DType.float32, DType.bfloat16)}
    for dtype, case in cases.items():
        yield f"{dtype.value}: layers replayed", partial(exactness.check_replay, case)
        yield f"{dtype.value}: engine against plain passes", partial(exactness.check_engine, case)
        yield f"{dtype.value}: FDT against generate", partial(exactness.check_generation, case)
        yield f"{dtype.value}: rounding", partial(exactness.check_rounding, case)
        yield f"{dtype.value}: estimate repeated", partial(exactness.check_repeated_estimate, case)
    first, second = cases.values()
    yield "float32 against bfloat16", partial(exactness.compare_dtypes, first, second)
    for name in installed().compressors:
        yield f"device against CPU: {name}", partial(exactness.compare_with_cpu, first, name)
    yield "a second GPU", partial(exactness.check_second_gpu, replace(first))


def list_experts(mixtral: Case, small: bool) -> Iterator[tuple[str, Check]]:
    """On a mixture of experts, in both dtypes."""
    yield "make Mixtral", partial(measure_making, partial(make_mixtral, mixtral.folder, small))
    for dtype in (DType.bfloat16, DType.float32):
        case = replace(mixtral, dtype=dtype)
        yield f"Mixtral, {dtype.value}: engine against plain passes", partial(exactness.check_engine, case)
        yield f"Mixtral, {dtype.value}: estimates", partial(speed.check_estimates, case)
        yield f"Mixtral, {dtype.value}: calibration", partial(speed.check_calibration, case)


def list_sized(name: str, case: Case, shape: Shape, device: torch.device, peaks: Peaks) -> Iterator[tuple[str, Check]]:
    """On a Llama of some size, in bfloat16."""
    checks: dict[str, Check] = {
        "make": partial(measure_making, partial(make_llama, case.folder, shape, device)),
        "load": partial(speed.check_loading, case),
        "sampling": partial(speed.check_sampling, case),
        "reference": partial(speed.check_reference, case),
        "forward": partial(speed.check_forward, case, peaks),
        "decoding": partial(speed.check_decoding, case),
        "all metrics": partial(speed.check_scoring, case),
        "trials": partial(speed.check_trials, case, peaks),
        "estimates": partial(speed.check_estimates, case),
        "sorting": partial(speed.check_sorting, case),
    }
    for compressor in ("magnitude", "int8", "int4", "hqq", "nf4", "random", "gptq"):
        checks[f"compress by {compressor}"] = partial(speed.check_compressor, case, compressor)
    checks["packing"] = partial(speed.check_packing, case)
    checks["correction"] = partial(memory.check_correction, case)
    if name != "8B":
        checks["streamed from disk"] = partial(exactness.check_streaming, case)
    if name == "1B":
        checks["out of memory"] = partial(memory.check_out_of_memory, case)
    yield from ((f"{name}: {check}", work) for check, work in checks.items())


def measure_making(make: Check) -> Iterator[Result]:
    """Seconds of writing a model."""
    with Clock() as clock:
        make()
    yield Result(True, {"seconds": clock.seconds})


def list_checks(options: argparse.Namespace, device: torch.device, scratch: Path) -> Iterator[tuple[str, Check]]:
    """Names and checks, in their order; what a case holds goes when the next case begins."""
    peaks: Peaks = {}
    small = options.small
    yield "machine", partial(check_machine, device, small, peaks)
    case = Case(
        find_trained(options.models), DType.float32, Device(device.type), prefixes=8 if small else 64,
        batch=4 if small else 16, most_trials=6 if small else 42,
    )  # fmt: skip
    yield from list_exactness(case)
    for name, shape in (SMALL_SHAPES if small else SHAPES).items():
        prefixes = 4 if small else 32 if name == "8B" else 64
        sized = Case(
            scratch / name, DType.bfloat16, Device(device.type), prefixes, batch=prefixes,
            most_trials=8 if name == "8B" else 12, samples_prefixes=False,
        )  # fmt: skip
        yield from list_sized(name, sized, shape, device, peaks)
    # Last: what it launches, for an estimate of experts, takes longer to count than all that comes before.
    yield from list_experts(replace(case, folder=scratch / "mixtral", prefixes=8, batch=8, most_trials=12), small)


def measure(arguments: list[str]) -> Iterator[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="models and sizes that a CPU can run")
    parser.add_argument("--limit", type=float, default=510, metavar="SECONDS")
    parser.add_argument("--models", type=Path, default=TRAINED, metavar="FOLDER", help="folder with trained models")
    options = parser.parse_args(arguments)
    try:
        device = choose_device(options.device, "--device")
    except ConfigError as error:
        raise SystemExit(str(error)) from None
    with tempfile.TemporaryDirectory() as scratch:
        yield from run_checks(list_checks(options, device, Path(scratch)), options.limit)
