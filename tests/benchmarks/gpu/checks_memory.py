"""The most memory that a run needs, and what happens when there is too little."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from compressor.compression.apply import Treatments
from compressor.contracts import EstimateRequest, Treatment
from compressor.plugins import installed
from compressor.sensitivity.estimator import GradientEstimator

from .case import CONTINUATION_TOKENS, Case, find_differences
from .instruments import Clock
from .runner import Result, describe_error


def check_correction(case: Case) -> Iterator[Result]:
    """An estimate with every component in int8: no other step of a run holds so much."""
    model = case.model
    configured = {name: installed().compressors[name]() for name in ("int8", "int4")}
    options = {
        name: [None, *(Treatment(key, found.offer(component).levels[0]) for key, found in configured.items())]
        for name, component in model.components.items()
    }
    plan = {name: chosen[1] for name, chosen in options.items() if chosen[1] is not None}
    treatments = Treatments(configured, installed().compressors)
    sensitivity = GradientEstimator(model, case.reference, treatments, installed().metrics["kl"](), is_base=False)
    with Clock() as clock:
        sensitivity.estimate(EstimateRequest(options, "kl", plan))
    facts = {"prefixes": len(case.reference.tokens), **clock.facts()}
    if clock.peak_bytes is not None:
        facts["times the model"] = clock.peak_bytes / (model.base_parameters * model.dtype.itemsize)
    yield Result(True, facts)


def check_out_of_memory(case: Case) -> Iterator[Result]:
    """The engine halves what it runs at once until it fits, and the model is whole afterwards."""
    model = case.model
    before = {name: model.read(name).cpu() for name in [*model.components][:4]}
    trials = case.make_trials("int8")
    evaluator = case.open_sweep(["fdtm"], at_once=64)
    expected = evaluator.score_all(trials)
    logits_bytes = len(case.reference.tokens) * CONTINUATION_TOKENS * model.vocabulary * model.dtype.itemsize
    passed = True if model.device.type == "cuda" else None
    try:
        with limited_memory(model.device, 4 * logits_bytes):
            facts = {"differences": find_differences(evaluator.score_all(trials), expected)}
    except Exception as error:
        passed, facts = False, dict(describe_error(error).facts)
    whole = all(torch.equal(model.read(name).cpu(), weight) for name, weight in before.items())
    facts |= {"at once afterwards": evaluator.engine and evaluator.engine.runner.at_once, "model is whole": whole}
    yield Result(passed if whole else False, facts)


@contextmanager
def limited_memory(device: torch.device, free: int) -> Iterator[None]:
    """Inside, torch may allocate `free` bytes more than it holds now; a CPU has no such limit."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (torch.cuda.memory_allocated(device) + free) / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
