"""Training of a pruned model: what stays, what gets better, and that an interrupted training goes on."""

import signal
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from compressor.commands.stopping import Stopped
from compressor.contracts import Loss, Recovery, Trainer, Training
from compressor.errors import ModelError
from compressor.recovery.run_trainer import RunTrainer
from compressor.recovery.training_means import Stopping
from compressor.settings import DType
from compressor_plugins.recovery.finetune import Finetune
from compressor_plugins.recovery.least_squares import LeastSquares
from compressor_plugins.recovery.reconstruct import Reconstruct
from tests.support.families import USUAL
from tests.support.slow import rarely, rarely_cases
from tests.support.trainers import load_family, make_trainer, prune, quantize, recover

RECOVERIES = {
    "finetune": Finetune(steps=12, released=2, batch=5, learning_rate=3e-3),
    "margins": Finetune(steps=12, released=0, batch=5, loss=Loss.margins, mix=0.5, learning_rate=3e-3),
    "reconstruct": Reconstruct(steps=6, batch=4),
    "least_squares": LeastSquares(),
}


def stop_after(pauses: int) -> Stopping:
    """Wants to stop all the time, and does after so many states were written."""
    left = [pauses]

    def after_block() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stopped(signal.SIGTERM)

    return Stopping(lambda: True, after_block)


def choose(trainer_model: object, count: int = 6) -> list[str]:
    return list(trainer_model.components)[:count]  # type: ignore[attr-defined]


OFTEN = [("llama", "finetune"), ("gpt2", "reconstruct"), ("mixtral", "least_squares"), ("phi3", "finetune")]
RARE = [case for case in product(USUAL, ("finetune", "reconstruct", "least_squares")) if case not in OFTEN]


@pytest.mark.parametrize(("family", "name"), [*OFTEN, *rarely_cases(RARE)])
def test_zeros_and_frozen_components_stay_and_the_model_comes_nearer_to_the_base(
    family: str, name: str, tmp_path: Path
) -> None:
    model = load_family(family, tmp_path)
    names = choose(model)
    gone = prune(model, names)
    frozen = [each for each in model.components if model.components[each].layer == 1][-1:]
    before = {each: model.read(each) for each in frozen}
    trainer = make_trainer(model, tmp_path, names, frozen=frozen)
    error = measure_error(trainer)
    recover(RECOVERIES[name], trainer)
    for each in names:
        assert not model.read(each)[gone[each]].any()
        assert model.read(each)[~gone[each]].all()
    assert all(torch.equal(model.read(each), weight) for each, weight in before.items())
    assert not any(parameter.requires_grad for parameter in model.network.parameters())
    if name != "least_squares":  # which looks at one matrix after the other, on other texts
        assert measure_error(trainer) < error


def measure_error(trainer: RunTrainer) -> float:
    """Mean KL(base ‖ model) on the texts of the training."""
    tokens = trainer.means.texts
    ours, base = (
        each.logits(tokens, tokens.shape[1]).double().log_softmax(-1) for each in (trainer.model, trainer.means.base)
    )
    return float((base.exp() * (base - ours)).sum(-1).mean())


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("finetune", DType.bfloat16),
        ("reconstruct", DType.float32),
        *rarely_cases([("finetune", DType.float32), ("reconstruct", DType.bfloat16)]),
        *rarely_cases(("margins", dtype) for dtype in (DType.float32, DType.bfloat16)),
    ],
)
def test_an_interrupted_training_ends_with_the_same_weights(name: str, dtype: DType, tmp_path: Path) -> None:
    def start(folder: str, stopping: Stopping | None = None) -> RunTrainer:
        model = load_family("llama", tmp_path, dtype)
        prune(model, choose(model))
        (tmp_path / folder).mkdir(exist_ok=True)
        return make_trainer(model, tmp_path / folder, choose(model), stopping=stopping or Stopping())

    undisturbed = start("whole")
    whole = recover(RECOVERIES[name], undisturbed)
    for pauses in (1, 1, 1) if name == "reconstruct" else (3, 1, 2):
        trainer = start("parts", stop_after(pauses))
        try:
            RECOVERIES[name].recover(trainer)
        except Stopped:
            continue
        break
    resumed = recover(RECOVERIES[name], start("parts"))
    assert all(torch.equal(resumed[each], weight) for each, weight in whole.items())
    done = start("parts")
    assert done.is_done
    assert all(torch.equal(done.parameters[each], weight) for each, weight in whole.items())
    losses = [[(point.stage, point.step, point.loss) for point in each.points] for each in (undisturbed, done)]
    assert losses[0] == losses[1], "a stop makes no point of its own"


def test_a_damaged_state_of_a_training_starts_it_again_and_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def start(folder: str, stopping: Stopping | None = None) -> RunTrainer:
        model = load_family("llama", tmp_path)
        prune(model, choose(model))
        (tmp_path / folder).mkdir(exist_ok=True)
        return make_trainer(model, tmp_path / folder, choose(model), stopping=stopping or Stopping())

    whole = recover(RECOVERIES["finetune"], start("whole"))
    with pytest.raises(Stopped):
        RECOVERIES["finetune"].recover(start("parts", stop_after(3)))
    (state,) = (tmp_path / "parts").glob("*.safetensors")
    damaged = state.read_bytes()[:-100]
    state.write_bytes(damaged)
    trainer = start("parts")
    assert trainer.earlier is None
    assert f"{state} is damaged" in caplog.text and "this training starts again" in caplog.text
    assert state.with_name(f"{state.name}.damaged").read_bytes() == damaged
    assert all(torch.equal(weight, whole[each]) for each, weight in recover(RECOVERIES["finetune"], trainer).items())


class TwoStages(Recovery):
    """Least squares, then training."""

    name = "two_stages"

    def recover(self, trainer: Trainer) -> None:
        trainer.solve_least_squares(0.01)
        trainer.train(Training(steps=6, batch=4))


def test_stages_that_are_done_are_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(folder: str, stopping: Stopping | None = None) -> RunTrainer:
        model = load_family("llama", tmp_path)
        prune(model, choose(model))
        (tmp_path / folder).mkdir(exist_ok=True)
        return make_trainer(model, tmp_path / folder, choose(model), stopping=stopping or Stopping())

    whole = recover(TwoStages(), start("whole"))
    with pytest.raises(Stopped):
        TwoStages().recover(start("parts", stop_after(2)))
    trainer = start("parts")
    monkeypatch.setattr(RunTrainer, "solve_layer", lambda *arguments: pytest.fail("it was solved before"))
    assert all(torch.equal(weight, whole[each]) for each, weight in recover(TwoStages(), trainer).items())


def test_embeddings_and_head_stay_unless_they_are_wanted(tmp_path: Path) -> None:
    def train(embeddings: bool) -> dict[str, Tensor]:
        model = load_family("llama", tmp_path)
        prune(model, choose(model))
        return recover(
            Finetune(steps=2, released=0, batch=4, embeddings=embeddings),
            make_trainer(model, tmp_path, choose(model), key=str(embeddings)),
        )

    before = {name: p.clone() for name, p in load_family("llama", tmp_path).network.named_parameters()}
    outer = [name for name in before if "embed" in name or "lm_head" in name]
    assert outer
    assert all(torch.equal(train(False)[name], before[name]) for name in outer)
    assert not any(torch.equal(train(True)[name], before[name]) for name in outer)


@pytest.mark.parametrize("name", ["finetune", "reconstruct"])
@pytest.mark.parametrize("dtype", [DType.float32, *rarely([DType.bfloat16])])
def test_scales_of_quantized_components_are_trained(name: str, dtype: DType, tmp_path: Path) -> None:
    """Integers stay, and the model comes nearer to the base; interrupted, it ends with the same scales."""

    def start(folder: str, stopping: Stopping | None = None) -> RunTrainer:
        model = load_family("llama", tmp_path, dtype)
        names = choose(model)
        (tmp_path / folder).mkdir(exist_ok=True)
        prune(model, names[:2])
        quantized = quantize(model, names[2:])
        return make_trainer(model, tmp_path / folder, names[:2], quantized=quantized, stopping=stopping or Stopping())

    whole = start("whole")
    matrices = {each: scales.matrix for each, scales in whole.trained.scales.items()}
    error = measure_error(whole)
    recover(RECOVERIES[name], whole)
    assert measure_error(whole) < error
    for each, matrix in matrices.items():
        found = whole.trained.scales[each].find_matrix()
        assert torch.equal(found.integers, matrix.integers) and not torch.equal(found.scales, matrix.scales)
        assert torch.equal(whole.model.read(each), found.dense())
    with pytest.raises(Stopped):
        RECOVERIES[name].recover(start("parts", stop_after(1)))
    parts = start("parts")
    recover(RECOVERIES[name], parts)
    for trainer in (parts, start("parts")):
        for each, scales in whole.trained.scales.items():
            assert torch.equal(scales.logarithms, trainer.trained.scales[each].logarithms)
            assert torch.equal(trainer.model.read(each), whole.model.read(each))


@pytest.mark.parametrize("recovery", [Finetune(steps=20, batch=4, learning_rate=1e30), Reconstruct(20, 1e30)])
def test_a_loss_that_is_not_finite_is_one_line(recovery: Recovery, tmp_path: Path) -> None:
    model = load_family("llama", tmp_path)
    prune(model, choose(model))
    with pytest.raises(ModelError, match=r"loss of .* is not finite .*, with the learning rate 1e\+30$") as caught:
        recovery.recover(make_trainer(model, tmp_path, choose(model)))
    assert "\n" not in str(caught.value)


def test_the_last_good_state_of_a_training_that_fails_is_kept(tmp_path: Path) -> None:
    model = load_family("llama", tmp_path)
    prune(model, choose(model))
    trainer = make_trainer(model, tmp_path, choose(model), stopping=Stopping(lambda: True, lambda: None))
    with pytest.raises(ModelError):
        Finetune(steps=30, batch=4, learning_rate=1e30).recover(trainer)
    again = make_trainer(model, tmp_path, choose(model))
    assert again.earlier is not None
    assert all(bool(parameter.isfinite().all()) for parameter in model.network.parameters())
