"""Runs checks one after the other. What a check finds, or the error that stops it, becomes rows; then the next runs."""

import gc
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch


@dataclass(frozen=True)
class Result:
    """One finding of a check: `passed` is None where it only measures, or cannot run on this machine."""

    passed: bool | None
    facts: Mapping[str, Any] = field(default_factory=dict)
    part: str = ""


Check = Callable[[], Iterator[Result]]


def run_checks(checks: Iterable[tuple[str, Check]], limit: float) -> Iterator[dict[str, Any]]:
    """A row for each result of each check. After `limit` seconds no check begins, and none goes on."""
    began = time.monotonic()
    for name, check in checks:
        for result in find_results(check, began + limit):
            seconds = round(time.monotonic() - began, 1)
            row = {"check": name, "part": result.part, "passed": result.passed, "after s": seconds}
            yield {**row, "facts": dict(result.facts)}
        del check  # it may hold a model
        release_memory()


def find_results(check: Check, deadline: float) -> Iterator[Result]:
    """The results of a check until it ends, fails or is too late; an error is a result too."""
    results = check()
    while time.monotonic() < deadline:
        try:
            result = next(results)
        except StopIteration:
            return
        except Exception as error:
            yield describe_error(error)
            return
        yield result
    yield Result(None, {"skipped": "the time limit has passed"})


def describe_error(error: Exception) -> Result:
    """What went wrong, and where: the last four lines of code on the way to it."""
    places = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)[-4:]]
    return Result(False, {"error": f"{type(error).__name__}: {str(error)[:300]}", "where": ", ".join(places)})


def release_memory() -> None:
    """Give back to the GPU what a check left behind."""
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
