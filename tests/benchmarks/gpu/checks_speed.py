"""Seconds, peak memory, synchronisations and the share of the machine's peak, for each step of a run."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from math import nan

import numpy as np
import torch

from compressor.compression.calibration import gather
from compressor.contracts import Component, Context
from compressor.data.reference import Reference, build_reference, choose_batch
from compressor.data.sampling import sample_sequences
from compressor.export.compressed_tensors import pack_weight
from compressor.export_formats import is_installed
from compressor.plugins import installed

from .case import CONTINUATION_TOKENS, PREFIX_TOKENS, Case
from .instruments import Clock, count_kernels, count_synchronisations, measure_seconds
from .machine import Peaks
from .runner import Result

COMPRESSORS = ("magnitude", "int8", "int4")
EVERY_METRIC = ("fdtm", "sdtm", "divergent_perplexity", "kl", "margin_noise", "expected_fdtm")


def check_loading(case: Case) -> Iterator[Result]:
    """From disk to the device, and the hash of the files."""
    with Clock() as clock:
        model = case.model
    speed = model.stored_bytes / clock.seconds / 1e9
    yield Result(True, {"parameters": model.base_parameters, "GB/s": speed, **clock.facts()}, "load")
    with Clock() as clock:
        model.content_hash()
    yield Result(True, clock.facts(), "hash")


def check_sampling(case: Case, tokens: int = 8) -> Iterator[Result]:
    """Sampling prefixes from the model, 64 at once."""
    with Clock() as clock:
        sample_sequences(case.model, 64, tokens + 1, 0)
    yield Result(True, {"tokens": tokens, "seconds per token": clock.seconds / tokens, **clock.facts()})


def find_batch(case: Case) -> int:
    """The batch size that a run chooses by itself."""
    return choose_batch(case.model, PREFIX_TOKENS + CONTINUATION_TOKENS, CONTINUATION_TOKENS, None)


def check_reference(case: Case) -> Iterator[Result]:
    """The reference in batches as a run chooses them, on a part of the prefixes, and in one batch."""
    batch, prefixes = find_batch(case), case.prefix_tokens
    part = prefixes[: max(batch, 4 * batch)]
    with Clock() as clock:
        build_reference(case.model, part, CONTINUATION_TOKENS, batch)
    facts = {"prefixes": len(part), "seconds for 64 prefixes": clock.seconds * 64 / len(part)}
    yield Result(True, {**facts, **describe_tokens(clock, part), **clock.facts()}, f"batches of {batch}")
    with Clock() as clock:
        reference = case.reference
    facts = {"mended": reference.mended, "near ties": reference.near_ties, "noise floor": reference.noise_floor}
    passed = reference.noise_floor == CONTINUATION_TOKENS
    yield Result(passed, {**facts, **describe_tokens(clock, prefixes), **clock.facts()}, f"batches of {case.batch}")


def describe_tokens(clock: Clock, prefixes: torch.Tensor) -> dict[str, float]:
    return {"generated tokens/s": len(prefixes) * CONTINUATION_TOKENS / clock.seconds}


def list_references(case: Case) -> Iterator[Reference]:
    """The reference in the batches of the case, and in those that a run chooses."""
    for batch in dict.fromkeys((case.batch, find_batch(case))):
        yield replace(case.reference, batch=batch, runners={})


def count_operations(case: Case, tokens: int, scored: int) -> int:
    """Operations of a forward pass: products with the components, and with the LM head for scored positions."""
    components = case.model.components.values()
    weights = sum(component.parameters for component in components if component.layer is not None)
    head = case.model.vocabulary * case.model.network.config.hidden_size
    return 2 * (weights * tokens + head * scored)


def check_forward(case: Case, peaks: Peaks) -> Iterator[Result]:
    """A scoring pass over one batch: share of the peak of products, and of the time in which weights can be read."""
    model = case.model
    for reference in list_references(case):
        tokens = reference.tokens[: reference.batch, :-1]

        def work(tokens: torch.Tensor = tokens) -> torch.Tensor:
            return model.logits(tokens, CONTINUATION_TOKENS)

        seconds = measure_seconds(work)
        operations = count_operations(case, tokens.numel(), len(tokens) * CONTINUATION_TOKENS)
        facts = {
            "seconds": seconds,
            "tokens/s": tokens.numel() / seconds,
            "share of peak": operations / seconds / peaks.get(case.dtype.value, nan),
            "share of bandwidth": model.base_parameters * model.dtype.itemsize / seconds / peaks.get("copy", nan),
        }
        facts |= count_synchronisations(work) | count_kernels(work)
        yield Result(True, facts, f"batch of {len(tokens)}")


def check_decoding(case: Case, tokens: int = 8) -> Iterator[Result]:
    """Greedy decoding of two sequences, a token at a time with a cache."""
    prefixes = case.reference.tokens[:2, :PREFIX_TOKENS]

    def work() -> torch.Tensor:
        return case.model.decode(prefixes, tokens, lambda logits: logits.argmax(-1))

    yield Result(True, {"seconds per token": measure_seconds(work) / tokens, **count_kernels(work)})


def check_scoring(case: Case) -> Iterator[Result]:
    """Every metric on the model as it stands."""
    for reference in list_references(case):
        evaluator = case.open_sweep(EVERY_METRIC, reference=reference)
        evaluator.score_current()
        with Clock() as clock:
            evaluator.score_current()
        speed = {"tokens/s": reference.tokens.numel() / clock.seconds}
        facts = {**clock.facts(), **speed, **count_synchronisations(evaluator.score_current)}
        yield Result(True, facts, f"batches of {reference.batch}")


def check_trials(case: Case, peaks: Peaks) -> Iterator[Result]:
    """Pruned single components, by the engine and by a plain forward pass for each."""
    for reference in list_references(case):
        trials = case.make_trials("magnitude", 0.5)
        evaluator, part = case.open_sweep(["fdtm", "kl"], reference=reference), f"batches of {reference.batch}"
        with Clock() as clock:
            evaluator.score_all(trials[:2])
        yield Result(True, clock.facts(), f"{part}, first two trials with the engine's proof")
        with Clock() as clock:
            evaluator.score_all(trials)
        facts = {"trials": len(trials), "seconds per trial": clock.seconds / len(trials), **clock.facts()}
        facts |= {"at once": evaluator.engine and evaluator.engine.runner.at_once}
        yield Result(True, facts | count_synchronisations(partial(evaluator.score_all, trials[:2])), part)
        plain = case.open_sweep(["fdtm", "kl"], plain=True, reference=reference)
        with Clock() as clock:
            plain.score_all(trials)
        tokens = len(reference.tokens) * (PREFIX_TOKENS + CONTINUATION_TOKENS - 1)
        operations = len(trials) * count_operations(case, tokens, len(reference.tokens) * CONTINUATION_TOKENS)
        share = operations / clock.seconds / peaks.get(case.dtype.value, nan)
        yield Result(True, {"trials": len(trials), "share of peak": share, **clock.facts()}, f"{part}, plain passes")


def check_estimates(case: Case) -> Iterator[Result]:
    """One backward pass over all layers for each of two objectives; then over two layers, to see what it launches."""
    layers = {component.layer for component in case.model.components.values() if component.layer is not None}
    for objective in ("kl", "margin_noise"):
        with Clock() as clock:
            case.estimate(objective, COMPRESSORS)
        facts = {"prefixes": len(case.reference.tokens), "seconds per layer": clock.seconds / len(layers)}
        yield Result(True, {**facts, **clock.facts()}, objective)
    outer = {min(layers), max(layers)}
    names = [name for name, component in case.model.components.items() if component.layer in outer]

    def work() -> object:
        return case.estimate("kl", COMPRESSORS, names)

    yield Result(True, count_synchronisations(work) | count_kernels(work), "kl, first and last layer")


def check_calibration(case: Case) -> Iterator[Result]:
    """The second moments of all inputs, which GPTQ needs."""
    with Clock() as clock:
        gather(case.model, case.reference, list(case.model.components), {"hessian"})
    yield Result(True, clock.facts())


def find_largest(case: Case) -> Component:
    return max(case.model.components.values(), key=lambda component: component.parameters)


def measure_piece(case: Case, work: Callable[[], object], share: float) -> dict[str, object]:
    """The second of two runs; `share` is the part of the whole model's work that this is."""
    work()
    with Clock() as clock:
        work()
    return {**clock.facts(), "seconds for the model": clock.seconds / share}


def find_share(case: Case, component: Component) -> float:
    """Of all weights of components."""
    return component.parameters / sum(other.parameters for other in case.model.components.values())


def check_sorting(case: Case) -> Iterator[Result]:
    """What pruning does with the largest matrix: order its weights, and count them."""
    component = find_largest(case)
    weight, share = case.model.read(component.name).abs(), find_share(case, component)
    row = weight.reshape(1, -1)
    borders = torch.linspace(0, 1, 256, dtype=torch.float64)
    pieces: dict[str, Callable[[], object]] = {
        "sort a matrix": lambda: row[0].sort().values,
        "kthvalue of a matrix": lambda: row.kthvalue(row.shape[1]),
        "argsort by row": lambda: weight.argsort(dim=-1, stable=True),
        "histogram on the CPU for schedule=global": lambda: torch.bincount(
            torch.bucketize(weight.double().flatten().cpu(), borders), minlength=len(borders) + 1
        ),
    }
    for part, work in pieces.items():
        yield Result(True, {"shape": str(component.shape), **measure_piece(case, work, share)}, part)


def check_compressor(case: Case, name: str) -> Iterator[Result]:
    """All options of a compressor for the largest matrix; of one that solves equations, for a down projection."""
    compressor, component = installed().compressors[name](), find_largest(case)
    data = {}
    if compressor.needs:
        component = next(other for other in case.model.components.values() if other.kind == "down")
        inputs = torch.randn(4096, component.shape[1], device=case.model.device)
        data = {"hessian": inputs.mT @ inputs / len(inputs), "tokens": torch.tensor(10**6, device=inputs.device)}
    offer, weight = compressor.offer(component), case.model.read(component.name)
    amounts = offer.levels or ([0.5] if name == "random" else np.linspace(0, 1, 21).tolist())

    def work() -> list[object]:
        context = Context(component, 0, data)
        return [compressed.dense() for compressed in compressor.compress_each(weight, amounts, context)]

    share = find_share(case, component)
    if compressor.needs:  # its time goes by columns
        share = component.shape[1] / sum(other.shape[1] for other in case.model.components.values())
    facts = {"shape": str(component.shape), "options": len(amounts), **measure_piece(case, work, share)}
    yield Result(True, facts)


def check_packing(case: Case) -> Iterator[Result]:
    """Packing the largest matrix in int4 for the export, on the CPU."""
    if not is_installed():
        yield Result(None, {"skipped": "needs the package compressed-tensors"})
        return
    component, compressor = find_largest(case), installed().compressors["int4"]()
    weight = case.model.read(component.name)
    compressed = compressor.compress(weight, compressor.offer(component).levels[0], Context(component))
    matrix = compressed.quantized
    if matrix is None:
        raise ValueError("int4 gave no integers")

    def work() -> object:
        return pack_weight(matrix.to("cpu"), compressed.dense(), case.model.dtype)

    yield Result(not isinstance(work(), str), measure_piece(case, work, find_share(case, component)))
