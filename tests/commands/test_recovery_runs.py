"""Runs with training between rounds: what is recorded and saved, and that they go on where they were stopped."""

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from compressor.artifacts import answers
from compressor.commands.config import compose_groups, open_hydra, read_config, store_schemas
from compressor.commands.overrides import write_overrides
from compressor.commands.run import Run
from compressor.commands.stopping import Stopped, stop
from compressor.contracts import Recovery
from compressor.errors import ConfigError
from compressor.plugins import installed
from compressor.recovery import run_trainer
from compressor.settings import ComponentSettings, ExportSettings, ModelSettings, ResumeSettings, Settings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.recovery.finetune import Finetune
from compressor_plugins.recovery.least_squares import LeastSquares
from compressor_plugins.recovery.reconstruct import Reconstruct
from compressor_plugins.schedules.uniform import Uniform
from tests.support.command_line import call_command
from tests.support.families import save_checkpoint
from tests.support.forecasts import make_settings as make_forecast_settings
from tests.support.forecasts import run as make_forecast
from tests.support.runs import make_settings, run
from tests.support.slow import rarely, rarely_cases

RESULTS = ("plan.json", "sequences.jsonl", "model/model.safetensors", "model/config.json")
RECOVERIES = {
    "finetune": Finetune(steps=20, released=2, batch=4, windows=16, tokens=12, learning_rate=3e-3),
    "reconstruct": Reconstruct(steps=10, batch=4, windows=16, tokens=12),
    "least_squares": LeastSquares(),
}
PARTS = ComponentSettings(include=[r"layers\.\d+\.mlp"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "llama"
    return save_checkpoint("llama", folder, dtype=torch.bfloat16, with_tokenizer=True)


def make(base: Path, recovery: Recovery | None, **changes: object) -> Settings:
    settings = make_settings(Uniform(targets=(0.4, 0.7)), Magnitude(), model=ModelSettings(path=str(base)))
    metrics = {name: settings.metric[name] for name in ("fdtm", "kl")}
    return replace(settings, metric=metrics, recovery=recovery, components=PARTS, **changes)


@pytest.mark.parametrize("name", ["finetune", "least_squares", *rarely(["reconstruct"])])
def test_each_round_is_followed_by_a_recovery(name: str, base: Path, tmp_path: Path) -> None:
    record = run(tmp_path / "out", make(base, RECOVERIES[name], export=ExportSettings(verify=True)))
    without = run(tmp_path / "without", make(base, None))
    for step in record.rounds:
        assert step.recovery is not None and step.recovery.name == name
        assert step.recovery.before != step.scores
    assert record.rounds[0].recovery is not None
    assert record.rounds[0].recovery.before == without.rounds[0].scores, "the first plan is the same"
    assert record.export is not None and record.export.verification is not None
    assert record.export.verification.gap == 0, "the saved model is what was scored"
    assert record.final is not None and without.final is not None
    assert record.final.bytes == without.final.bytes, "weights are rounded to the dtype of the checkpoint"
    tensors = load_file(tmp_path / "out" / "model" / "model.safetensors")
    for component in record.components:
        assert int((tensors[f"{component}.weight"] == 0).sum()) == round(0.7 * tensors[f"{component}.weight"].numel())


def test_a_head_that_is_trained_does_not_change_the_reference(base: Path, tmp_path: Path) -> None:
    """FDT and KL of the saved model, computed by transformers alone from both checkpoints, are those of the record."""
    recovery = Finetune(steps=10, released=0, batch=4, windows=16, tokens=12, learning_rate=1e-2, embeddings=True)
    run(tmp_path / "out", make(base, recovery))
    heads = [load_file(path / "model.safetensors")["lm_head.weight"] for path in (base, tmp_path / "out" / "model")]
    assert not torch.equal(*heads)
    tokens = load_file(tmp_path / "out" / "reference.safetensors")["tokens"]
    start, lines = 8, [json.loads(line) for line in (tmp_path / "out" / "sequences.jsonl").read_text().splitlines()]
    with torch.no_grad():
        logits = [
            AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)(tokens).logits[:, start - 1 : -1].double()
            for path in (base, tmp_path / "out" / "model")
        ]
    assert torch.equal(logits[0].argmax(-1), tokens[:, start:])
    said = (logits[1].argmax(-1) == tokens[:, start:]).cumprod(-1).sum(-1)
    assert [line["fdtm"] for line in lines] == said.tolist()
    before, after = (each.log_softmax(-1) for each in logits)
    divergences = (before.exp() * (before - after)).sum(-1).mean(-1)
    np.testing.assert_allclose([line["kl"] for line in lines], divergences.numpy(), rtol=1e-4)


def test_quantized_components_keep_their_integers_and_get_other_scales(base: Path, tmp_path: Path) -> None:
    """The packed file has what was trained and scored."""
    settings = make_settings(
        Uniform(targets=(0.75,)), Int4(group=4), model=ModelSettings(path=str(base)), components=PARTS,
        export=ExportSettings(verify=True),
    )  # fmt: skip
    packed = [
        run(tmp_path / name, replace(settings, recovery=recovery))
        for name, recovery in (("with", RECOVERIES["finetune"]), ("without", None))
    ]
    assert packed[0].rounds[0].recovery is not None and packed[0].rounds[0].recovery.is_kept
    assert packed[0].export is not None and packed[0].export.packed and packed[0].export.verification is not None
    assert packed[0].export.verification.gap == 0
    tensors = [load_file(tmp_path / name / "model" / "model.safetensors") for name in ("with", "without")]
    integers = [name for name, tensor in tensors[0].items() if not tensor.is_floating_point()]
    assert integers and all(torch.equal(tensors[0][name], tensors[1][name]) for name in integers)
    scales = [name for name in tensors[0] if name.endswith("weight_scale")]
    assert len(scales) == packed[0].export.packed
    assert not any(torch.equal(tensors[0][name], tensors[1][name]) for name in scales)
    assert packed[0].final is not None and packed[1].final is not None
    assert packed[0].final.bytes == packed[1].final.bytes


@pytest.fixture
def every_answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each answer, and each point of a training, is a block of its own."""
    monkeypatch.setattr(answers, "BLOCK_SECONDS", 0.0)
    monkeypatch.setattr(run_trainer, "SAVED_EVERY", 0.0)
    yield
    stop.signum = None


@pytest.mark.parametrize("where", ["in the middle", *rarely(["at both ends"])])
@pytest.mark.parametrize("name", ["finetune", *rarely(["least_squares", "reconstruct"])])
def test_a_run_that_is_stopped_anywhere_ends_the_same(
    name: str, where: str, base: Path, tmp_path: Path, every_answer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(base, RECOVERIES[name])
    whole = run(tmp_path / "whole", replace(settings, resume=ResumeSettings(keep=True)))
    left, checks = [0], [0]

    def check() -> None:
        checks[0] += 1
        left[0] -= 1
        if left[0] == 0:
            raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(stop, "check", check)
    run(tmp_path / "counted", settings)
    for number in {checks[0] // 3, checks[0] // 2} if where == "in the middle" else {2, checks[0] - 3}:
        left[0] = number
        with pytest.raises(Stopped):
            run(tmp_path / f"stopped {number}", settings)
        again = run(tmp_path / f"stopped {number}", settings)
        for file in RESULTS:
            found, wanted = ((tmp_path / folder / file).read_bytes() for folder in (f"stopped {number}", "whole"))
            assert found == wanted, (number, file)
        assert [step.scores for step in again.rounds] == [step.scores for step in whole.rounds]
        assert [list_losses(step) for step in again.rounds] == [list_losses(step) for step in whole.rounds]


def list_losses(step: object) -> list[tuple[str, int, float]]:
    return [(point.stage, point.step, point.loss) for point in step.recovery.points]  # type: ignore[attr-defined]


def test_a_round_that_was_trained_is_not_trained_again(
    base: Path, tmp_path: Path, every_answer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(base, RECOVERIES["finetune"])

    def halt(self: Run) -> None:
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "prove", halt)
        with pytest.raises(Stopped):
            run(tmp_path / "out", settings)
    monkeypatch.setattr(run_trainer.RunTrainer, "train", lambda *arguments: pytest.fail("it was trained before"))
    assert run(tmp_path / "out", settings).status == "done"


def test_another_text_for_training_is_refused_or_accepted(
    base: Path, tmp_path: Path, every_answer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    settings = make(base, replace(RECOVERIES["finetune"], path=str(text)))  # type: ignore[type-var]
    words = ["Once upon a time there was a dog. " * 20, "The cat sat on the mat and ate all the fish. " * 20]

    def halt(self: Run) -> None:
        raise Stopped(signal.SIGTERM)

    text.write_text(words[0])
    with monkeypatch.context() as patch:
        patch.setattr(Run, "prove", halt)
        with pytest.raises(Stopped):
            run(tmp_path / "out", settings)
    text.write_text(words[1])
    with pytest.raises(ConfigError, match=r"texts of recovery\.path=/.*/text\.txt changed; take them by resume\.a"):
        run(tmp_path / "out", settings)
    accepted = run(tmp_path / "out", replace(settings, resume=ResumeSettings(accept=["texts"])))
    whole = run(tmp_path / "whole", settings)
    assert [list_losses(step) for step in accepted.rounds] == [list_losses(step) for step in whole.rounds]
    for file in RESULTS:
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


SHORT = [
    "schedule=uniform", "schedule.targets=[0.5]", "tracking=none", "metric=[fdtm]", "data.prefixes=2",
    "data.prefix_tokens=6", "data.continuation_tokens=8", "hydra.run.dir=out",
]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["recovery=finetune", "recovery.learning_rate=0"], "`recovery.learning_rate` must be a finite number above 0"),
        (["recovery=finetune", "recovery.path=missing.txt"], "missing.txt"),
        (["recovery=finetune", 'recovery.path=""'], "`recovery.path` must not be empty; give a name, or leave it out"),
        (["recovery=finetune", "recovery.loss=mse"], "recovery.loss"),
        (
            ["recovery=least_squares", "model.stream=true"],
            "needs the weights in memory, and `model.stream` leaves them",
        ),
        (["recovery=finetune", "recovery.tokens=4000"], "must be at most the model's context"),
        *rarely_cases(
            [
                (["recovery=finetune", "recovery.steps=0"], "`recovery.steps` must be at least 1, got 0"),
                (["recovery=finetune", "recovery.mix=2"], "`recovery.mix` must be from 0 to 1, got 2"),
                (["recovery=reconstruct", "recovery.tokens=1"], "`recovery.tokens` must be at least 2, got 1"),
                (["recovery=least_squares", "recovery.damping=nan"], "`recovery.damping` must be a finite number ab"),
                (["recovery=finetunes"], "finetune"),
                (
                    ["recovery=reconstruct", "recovery.path=a.txt", "recovery.dataset=b"],
                    "`recovery.path` and `recovery.dataset` exclude each other, got a.txt and b; drop one",
                ),
            ]
        ),
    ],
)
def test_wrong_options_are_one_line(options: list[str], said: str, tmp_path: Path) -> None:
    done = call_command(tmp_path, "run", *SHORT, *options)
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said in line


def test_a_text_for_training_that_is_too_short_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Once upon a time.")
    done = call_command(tmp_path, "run", *SHORT, "recovery=finetune", "recovery.path=short.txt")
    assert done.returncode == 1
    assert "`recovery.path`: short.txt holds" in done.stderr
    assert "fewer than a window of 128; give more text or lower `recovery.tokens`" in done.stderr
    assert "what the base says" not in done.stdout, "no work was done"


def test_a_training_that_makes_all_worse_is_undone(base: Path, tmp_path: Path) -> None:
    harmful = Finetune(steps=10, released=0, batch=2, windows=8, tokens=12, learning_rate=0.3)
    record, without = (run(tmp_path / str(index), make(base, each)) for index, each in enumerate((harmful, None)))
    for step, plain in zip(record.rounds, without.rounds, strict=True):
        assert step.recovery is not None and not step.recovery.is_kept
        assert step.scores == step.recovery.before == plain.scores
    for file in RESULTS:
        assert (tmp_path / "0" / file).read_bytes() == (tmp_path / "1" / file).read_bytes()
    assert sum("Recovery made every metric worse" in note for note in record.notes) == 2


@pytest.mark.parametrize(
    ("chosen", "recovery"), [([], Finetune(steps=180, released=20, learning_rate=0.003)), (["recovery=none"], None)]
)
def test_no_recovery_wins_over_the_options_of_an_experiment(chosen: list[str], recovery: Finetune | None) -> None:
    store_schemas(installed())
    with open_hydra():
        config = compose_groups(["experiment=tiny_retrain", *chosen])
    settings, plain = read_config(config)
    assert settings.recovery == recovery
    assert plain["recovery"] == (recovery and {"name": "finetune", **plain["recovery"]})


def test_a_recorded_recovery_is_written_as_overrides() -> None:
    recorded = {"recovery": {"name": "finetune", "steps": 3}}
    assert [*write_overrides(recorded, ["recovery"])] == ["recovery=finetune", "recovery.steps=3"]
    assert [*write_overrides({"recovery": None}, ["recovery"])] == ["recovery=none"]


def test_a_forecast_says_that_it_does_not_train(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = make_forecast_settings(model=ModelSettings(path=str(base)), recovery=LeastSquares())
    with caplog.at_level("WARNING"):
        make_forecast(tmp_path / "out", settings)
    assert "`recovery` has no effect in a forecast, which does not train; leave it out" in caplog.messages
