"""What must be exact: does it have the same bits on a GPU? Where it cannot, how much does rounding change?"""

from collections.abc import Iterator

import numpy as np
import torch

from compressor.compression.apply import Treatments
from compressor.contracts import Context, Treatment
from compressor.evaluation.layer_replay import LayerReplay
from compressor.plugins import installed
from compressor.settings import DType

from .case import CONTINUATION_TOKENS, Case, are_equal, find_differences
from .instruments import Clock
from .runner import Result

METRICS = ("fdtm", "sdtm", "kl")
ALIKE = 0.01
"""How far the errors of a compressor that solves equations may be apart on two devices, as a share of them."""


def check_replay(case: Case) -> Iterator[Result]:
    """Do the layers, run one by one, give the bits of the whole forward pass? If not, the engine is not used."""
    with Clock() as clock:
        replay = LayerReplay(case.model)
    yield Result(True, {"splits positions": replay.splits_positions, **clock.facts()})


def check_engine(case: Case) -> Iterator[Result]:
    """Trials by the engine, one by one and 64 at once, against a plain forward pass for each; then all are undone."""
    before = {name: case.model.read(name) for name in case.model.components}
    for compressor, amount in (("magnitude", 0.3), ("int8", None)):
        trials = case.make_trials(compressor, amount)
        plain = case.open_sweep(METRICS, plain=True).score_all(trials)
        repeated = find_differences(plain, case.open_sweep(METRICS, plain=True).score_all(trials))
        means = {metric: float(np.mean([found[metric][:, 0] for found in plain])) for metric in METRICS}
        facts = {"compressor": compressor, "trials": len(trials)}
        yield Result(are_equal(repeated), {**facts, "means": means, "differences": repeated}, "plain passes repeated")
        for at_once in (1, 64):
            found = find_differences(plain, case.open_sweep(METRICS, at_once).score_all(trials))
            yield Result(are_equal(found), {**facts, "differences": found}, f"engine, {at_once} at once")
        leading = case.open_sweep(["fdtm"]).score_all(trials)
        found = find_differences(leading, plain)
        yield Result(are_equal(found), {**facts, "differences": found}, "engine, FDT alone")
    restored = all(torch.equal(case.model.read(name), weight) for name, weight in before.items())
    yield Result(restored, {"components": len(before)}, "weights restored bit for bit")


def check_generation(case: Case) -> Iterator[Result]:
    """FDT of a pruned model by the scoring pass, and by `generate` of both models; equal in float32."""
    model, reference = case.model, case.reference
    prefixes = reference.tokens[:, : reference.prefix_tokens].to(model.device)
    expected = reference.tokens[:, reference.prefix_tokens :]

    def generate() -> torch.Tensor:
        """Does each generated token equal the reference? `[sequence, position]`"""
        tokens = model.network.generate(
            prefixes, attention_mask=torch.ones_like(prefixes), do_sample=False, eos_token_id=None, bos_token_id=None,
            pad_token_id=0, max_new_tokens=CONTINUATION_TOKENS,
        )  # fmt: skip
        return tokens[:, reference.prefix_tokens :].cpu() == expected

    treatments = Treatments({}, installed().compressors)
    plan = {name: Treatment("magnitude", 0.2) for name in model.components}
    weights = {name: compressed.dense() for name, compressed in treatments.compress(model, plan).items()}
    (scored,) = case.open_sweep(["fdtm"]).score_all([plan])
    base = generate()
    with model.swapped(weights):
        candidate = generate()
    by_scoring, by_generation = scored["fdtm"][:, 0], candidate.long().cumprod(1).sum(1).numpy()
    facts = {
        "FDT scored": float(by_scoring.mean()),
        "FDT generated": float(by_generation.mean()),
        "sequences that differ": int((by_scoring != by_generation).sum()),
        "base generates its reference": int(base.all(1).sum()),
        "sequences": len(expected),
        "mended": reference.mended,
        "near ties": reference.near_ties,
        "noise floor": reference.noise_floor,
    }
    yield Result(bool((by_scoring == by_generation).all()) if case.dtype is DType.float32 else None, facts)


def check_rounding(case: Case) -> Iterator[Result]:
    """The base scored in other batch sizes: FDT(F, F), SDT and KL that come from rounding alone."""
    model, reference = case.model, case.reference
    expected = reference.tokens[:, reference.prefix_tokens :]

    def score(size: int) -> torch.Tensor:
        parts = reference.tokens[:, :-1].split(size)
        return torch.cat([model.logits(part, CONTINUATION_TOKENS).float() for part in parts])

    base = score(reference.batch)
    for size in dict.fromkeys((1, 4, reference.batch, len(expected))):
        logits = score(size)
        agrees = logits.argmax(-1).cpu() == expected
        first, second = base.log_softmax(-1), logits.log_softmax(-1)
        facts = {
            "FDT": float(agrees.long().cumprod(1).sum(1).double().mean()),
            "SDT": float((~agrees).sum(1).double().mean()),
            "KL": float((first.exp() * (first - second)).sum(-1).mean()),
            "share of logits that differ": float((logits != base).double().mean()),
        }
        passed = bool(agrees.all()) if size == reference.batch else None
        yield Result(passed, facts, f"batch {size} of a reference in batches of {reference.batch}")


def check_repeated_estimate(case: Case) -> Iterator[Result]:
    """The same estimate twice: a backward pass may add up in another order each time."""
    runs = []
    for _ in range(2):
        with Clock() as clock:
            changes = case.estimate("kl", ["int8", "magnitude"])
        runs.append(np.concatenate([change.ravel() for change in changes.values()]))
    largest = float(np.abs(runs[0] - runs[1]).max() / np.abs(runs[0]).max())
    yield Result(bool((runs[0] == runs[1]).all()), {"largest relative difference": largest, **clock.facts()})


def compare_dtypes(exact: Case, rounded: Case) -> Iterator[Result]:
    """Are trials of single matrices ranked alike in both dtypes? If not, the second measures its own rounding."""
    for compressor in ("int8", "int4"):
        scores = []
        for case in (exact, rounded):
            found = case.open_sweep(["fdtm", "kl"], plain=True).score_all(case.make_trials(compressor))
            scores.append({name: np.array([trial[name][:, 0].mean() for trial in found]) for name in found[0]})
        facts: dict[str, object] = {}
        for metric, first in scores[0].items():
            second = scores[1][metric]
            ranks = [values.argsort().argsort() for values in (first, second)]
            facts[f"{metric}, rank correlation"] = float(np.corrcoef(*ranks)[0, 1])
            facts[f"{metric}, medians"] = {exact.dtype.value: np.median(first), rounded.dtype.value: np.median(second)}
        yield Result(None, facts, compressor)


def compare_with_cpu(case: Case, name: str) -> Iterator[Result]:
    """A compressor gives the same weight on the device as on the CPU.

    One that reads calibration data solves equations, which round differently: its errors must be alike.
    """
    downs = (component for component in case.model.components.values() if component.kind == "down")  # all offer for it
    component = max(downs, key=lambda component: component.parameters)
    compressor = installed().compressors[name]()
    offer = compressor.offer(component)
    amount = 0.37 if offer.is_range else offer.levels[0]
    stored = case.model.read(component.name).cpu()
    inputs = torch.randn(2048, component.shape[1], generator=torch.Generator().manual_seed(0))
    data = {"hessian": inputs.mT @ inputs / len(inputs), "absmax": inputs.abs().amax(0)}
    data["second_moment"], data["tokens"] = inputs.square().mean(0), torch.tensor(len(inputs))
    gradients = torch.randn(2048, component.shape[0], generator=torch.Generator().manual_seed(1))
    data["fisher_diagonal"] = gradients.square().mT @ inputs.square() / len(inputs)
    for dtype in (torch.float32, torch.bfloat16):
        weight, found = stored.to(dtype), []
        for device in (torch.device("cpu"), case.model.device):
            context = Context(component, 0, {key: value.to(device) for key, value in data.items()})
            found.append(compressor.compress(weight.to(device), amount, context).dense().cpu().float())
        differs = float((found[0] != found[1]).double().mean())
        errors = [float((one - weight.float()).norm()) for one in found]
        alike = abs(errors[1] - errors[0]) <= ALIKE * errors[0]
        facts = {"share that differs": differs, "largest": float((found[0] - found[1]).abs().max())}
        facts |= {"error on the CPU": errors[0], "error on the device": errors[1]}
        yield Result(alike if compressor.needs else differs == 0, facts, str(dtype).removeprefix("torch."))


def check_second_gpu(case: Case) -> Iterator[Result]:
    """Scores and estimates on a GPU that is not the current one."""
    if torch.cuda.device_count() < 2:
        yield Result(None, {"skipped": "needs two GPUs"})
        return
    case.model.network.to("cuda:1")
    case.model.device = torch.device("cuda:1")
    scores = case.open_sweep(["fdtm", "kl"]).score_all(case.make_trials("int8"))
    case.estimate("kl", ["int8"])
    yield Result(True, {"FDT": float(np.mean([found["fdtm"][:, 0] for found in scores]))})


def check_streaming(case: Case) -> Iterator[Result]:
    """A model that stays on disk gives the bits of one in memory; seconds of its second pass."""
    streamed = case.load(DType.auto, stream=True)
    tokens = case.prefix_tokens[:4]
    expected = case.model.logits(tokens, tokens.shape[1])
    streamed.logits(tokens, tokens.shape[1])
    with Clock() as clock:
        found = streamed.logits(tokens, tokens.shape[1])
    bytes_read = case.model.base_parameters * case.model.dtype.itemsize
    yield Result(torch.equal(found, expected), {**clock.facts(), "GB/s": bytes_read / clock.seconds / 1e9})
