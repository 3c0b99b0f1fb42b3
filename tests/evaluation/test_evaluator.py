"""The engine against independent oracles, such as generating with both models; the model is always restored."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compressor.compression.apply import Treatments
from compressor.contracts import Better, Metric, Readout, Reads, TextWindows, Treatment
from compressor.data.reference import build_reference
from compressor.data.texts import make_windows
from compressor.errors import ModelError, PluginError
from compressor.evaluation.batches import read_values
from compressor.evaluation.evaluator import Evaluator
from compressor.models import Model, load_model
from compressor.plugins import installed
from compressor.settings import DataSettings, ModelSettings
from compressor_plugins.metrics.divergent_perplexity import DivergentPerplexity
from compressor_plugins.metrics.fdtm import Fdtm
from compressor_plugins.metrics.kl import Kl
from compressor_plugins.metrics.perplexity import Perplexity
from compressor_plugins.metrics.sdtm import Sdtm
from compressor_plugins.pruning.magnitude import Magnitude
from tests.support.broken_plugins import broken
from tests.support.families import FAMILIES, TWO, each, save_checkpoint
from tests.support.references import count_leading, generate, random_prefixes
from tests.support.snapshots import is_unchanged, snapshot
from tests.support.trial_weights import GivenWeights

TOKENS = 20
GIVEN = GivenWeights()


def prune(model: Model, amount: float, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    treatments = Treatments({"magnitude": Magnitude()}, installed().compressors)
    plan = {name: Treatment("magnitude", amount) for name in (names or model.components)}
    return {name: weight.dense() for name, weight in treatments.compress(model, plan).items()}


def check_against_generate(model: Model, amounts: tuple[float, ...]) -> list[list[int]]:
    """FDT of the engine = leading tokens that two free-running generations share."""
    prefixes = random_prefixes(model, count=8, length=7)
    reference = build_reference(model, prefixes, TOKENS, batch=4)
    said = []
    for amount in amounts:
        weights, given = prune(model, amount), GivenWeights()
        evaluator = Evaluator(model, reference, {"fdtm": Fdtm()}, given)
        (values,) = evaluator.score_all([given.add_plan(weights)])
        with model.swapped(weights):
            candidate = generate(model, prefixes, TOKENS)
        expected = count_leading(reference.tokens[:, 7:], candidate[:, 7:])
        assert values["fdtm"][:, 0].tolist() == expected
        said.append(expected)
    return said


@pytest.mark.parametrize("family", each(FAMILIES, TWO))
def test_fdt_is_what_two_generations_share(tmp_path: Path, family: str) -> None:
    save_checkpoint(family, tmp_path)
    said = check_against_generate(load_model(ModelSettings(path=str(tmp_path))), (0.1, 0.3))
    assert any(value < TOKENS for values in said for value in values)


def test_fdt_of_trained_models_is_what_two_generations_share(trained_folder: Path) -> None:
    said = check_against_generate(load_model(ModelSettings(path=str(trained_folder))), (0.05, 0.2, 0.5))
    assert np.mean(said[0]) > np.mean(said[2])


@pytest.fixture
def llama(tmp_path: Path) -> Model:
    save_checkpoint("llama", tmp_path, with_tokenizer=True)
    return load_model(ModelSettings(path=str(tmp_path)))


def make_sweep(model: Model) -> Evaluator:
    metrics: dict[str, Metric] = {
        "fdtm": Fdtm(), "sdtm": Sdtm(), "kl": Kl(), "divergent_perplexity": DivergentPerplexity(),
        "perplexity": Perplexity(),
    }  # fmt: skip
    reference = build_reference(model, random_prefixes(model), TOKENS, batch=4)
    reference.remember_distribution(model)
    windows = make_windows(model, TextWindows(tokens=200), DataSettings(prefix_tokens=9, continuation_tokens=8), None)
    return Evaluator(model, reference, metrics, GIVEN, {"perplexity": windows})


def test_one_pass_says_what_plain_passes_in_float64_say(llama: Model) -> None:
    """Every metric from the model's own forward in float64, with none of the engine's parts."""
    evaluator = make_sweep(llama)
    weights = prune(llama, 0.2)
    (found,) = evaluator.score_all([GIVEN.add_plan(weights)])
    tokens = evaluator.reference.tokens
    llama.network.double()
    base = llama.network(tokens[:, :-1]).logits[:, -TOKENS:].log_softmax(-1)
    for name, weight in weights.items():
        llama.write(name, weight)
    candidate = llama.network(tokens[:, :-1]).logits[:, -TOKENS:].log_softmax(-1)
    target = tokens[:, -TOKENS:]
    nats = -candidate.gather(-1, target[..., None]).squeeze(-1)
    assert found["divergent_perplexity"][:, 0] == pytest.approx(nats.mean(-1).numpy(), rel=1e-4)
    assert found["kl"][:, 0] == pytest.approx((base.exp() * (base - candidate)).sum(-1).mean(-1).numpy(), rel=1e-3)
    assert found["sdtm"][:, 0].tolist() == (candidate.argmax(-1) != target).sum(-1).tolist()
    rows = evaluator.windows["perplexity"].tokens
    text = -llama.network(rows[:, :-1]).logits.log_softmax(-1).gather(-1, rows[:, 1:, None])
    assert Perplexity().aggregate(found["perplexity"]) == pytest.approx(text.mean().exp().item(), rel=1e-4)


def test_trials_are_independent_and_undone(llama: Model) -> None:
    evaluator, before = make_sweep(llama), snapshot(llama)
    names = list(llama.components)
    plans = [prune(llama, 0.4, [name]) for name in names[:4]]
    together = evaluator.score_all([GIVEN.add_plan(plan) for plan in plans], ["fdtm", "kl"])
    assert is_unchanged(llama, before)
    for plan, values in zip(reversed(plans), reversed(together), strict=True):
        (alone,) = evaluator.score_all([GIVEN.add_plan(plan)], ["fdtm", "kl"])
        assert all(np.array_equal(alone[name], values[name]) for name in alone)


class Broken(Metric):
    """Fails in the way that it is told to."""

    name, reads, better = "broken", Reads.PREDICTED, Better.HIGHER

    def __init__(self, how: str) -> None:
        self.how = how

    def sequence_values(self, candidate: Readout, base: Readout) -> torch.Tensor:
        match self.how:
            case "raises":
                raise ZeroDivisionError("no such thing")
            case "shape":
                return candidate.predicted.double()[0]
            case "nan":
                return candidate.predicted.double().mean(-1, keepdim=True) * float("nan")
        return candidate.predicted[:2].double()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("raises", "metric `broken` of .* failed in `sequence_values`: ZeroDivisionError: no such thing"),
        ("shape", r"metric `broken` of .* gave values of shape \(20,\); \[4, value\] is needed"),
        ("nan", "metric `broken` of .* gave NaN or infinity on finite logits"),
    ],
)
def test_a_broken_metric_is_named_and_the_model_restored(llama: Model, how: str, message: str) -> None:
    reference = build_reference(llama, random_prefixes(llama), TOKENS, batch=4)
    before = snapshot(llama)
    with pytest.raises(PluginError, match=message):
        Evaluator(llama, reference, {"broken": Broken(how)}, GIVEN).score_all([GIVEN.add_plan(prune(llama, 0.5))])
    assert is_unchanged(llama, before)


BROKEN_VALUES: dict[str, tuple[Callable[[Readout], Any], str]] = {
    "numpy": (lambda candidate: candidate.predicted.double().numpy(), "gave values of type ndarray"),
    "no values": (lambda candidate: candidate.predicted[:, :0], r"gave values of shape \(\d, 0\)"),
    "complex": (lambda candidate: candidate.predicted[:, :1].to(torch.complex64), "complex64"),
    "sparse": (lambda candidate: candidate.predicted[:, :1].double().to_sparse(), "sparse_coo"),
    "meta": (lambda candidate: candidate.predicted[:, :1].to("meta"), "on meta"),
    "tokens": (lambda candidate: candidate.tokens.zero_()[:, :1], "changed `tokens`, which other metrics read too"),
    "output": (lambda candidate: candidate.predicted.zero_()[:, :1], "changed `predicted`"),
    "large": (
        lambda candidate: candidate.predicted[:, :1].double() - 1e308,
        r"gave the value 1e\+308; at most",
    ),
    "exit": (lambda candidate: sys.exit(0), "failed in `sequence_values`: SystemExit: 0"),
}


@pytest.mark.parametrize("case", BROKEN_VALUES)
def test_values_of_a_metric_are_checked(case: str) -> None:
    give, message = BROKEN_VALUES[case]
    metric = broken(Broken, sequence_values=lambda self, candidate, base: give(candidate))
    readout = Readout(torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(PluginError, match=f"metric `broken` of .*{message}"):
        read_values(metric, readout, readout)


def test_a_metric_that_gives_other_values_each_time_is_named(llama: Model) -> None:
    """Each question reads the first output twice."""
    calls = itertools.count()
    metric = broken(Broken, sequence_values=lambda self, candidate, base: candidate.predicted[:, :1] + next(calls))
    evaluator = Evaluator(llama, build_reference(llama, random_prefixes(llama), TOKENS, 4), {"broken": metric}, GIVEN)
    message = "metric `broken` of .* gave other values at a second call with the same outputs; they must follow"
    for trials in ([{}], [GIVEN.add_plan(prune(llama, 0.5))] * 2):
        with pytest.raises(PluginError, match=message):
            evaluator.score_all(trials)


def test_a_metric_is_read_twice_only_once_in_a_question(llama: Model) -> None:
    calls: list[int] = []
    metric = broken(
        Broken, sequence_values=lambda self, candidate, base: calls.append(1) or candidate.predicted[:, :1].double()
    )
    evaluator = Evaluator(llama, build_reference(llama, random_prefixes(llama), TOKENS, 1), {"broken": metric}, GIVEN)
    evaluator.score_current()
    assert len(calls) == 1 + len(evaluator.reference.tokens)


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_values_with_a_gradient_or_of_inference_mode_are_numbers(mode: Callable[[], Any]) -> None:
    def give(self: Metric, candidate: Readout, base: Readout) -> Any:  # noqa: ANN401
        return (candidate.predicted[:, :1] * torch.ones(1, requires_grad=True)).half()

    with mode():
        readout = Readout(torch.randn(2, 3, 5), torch.zeros(2, 3, dtype=torch.long))
        values = read_values(broken(Broken, sequence_values=give), readout, readout)
    assert values.dtype == torch.float64 and not values.requires_grad


def test_infinite_logits_of_a_candidate_are_named(llama: Model) -> None:
    evaluator, name = make_sweep(llama), next(iter(llama.components))
    weights = {name: torch.full(llama.components[name].shape, 3e38)}
    with pytest.raises((ModelError, PluginError), match="NaN or infinity"):
        evaluator.score_all([GIVEN.add_plan(weights)])
