"""An interrupted run goes on: with the same plan, scores and weights, and without computing an answer twice."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from compressor.artifacts import answers
from compressor.artifacts.answers import Answers
from compressor.artifacts.folder_check import check_folder
from compressor.artifacts.plan_file import write_plan
from compressor.artifacts.run_files import MARK, STATUS
from compressor.artifacts.run_folder import working_in
from compressor.artifacts.run_state import ANSWERS, list_differences, read_state
from compressor.artifacts.run_status import DONE, INTERRUPTED, read_status
from compressor.commands.command_record import Jobs, read_arguments, write_command
from compressor.commands.resume_command import resume
from compressor.commands.run import Run
from compressor.commands.stopping import Stopped, stop
from compressor.commands.terminal import Terminal
from compressor.contracts import Compressor, Schedule, Treatment
from compressor.errors import ConfigError, OutputError
from compressor.evaluation.evaluator import Evaluator
from compressor.plugins import installed
from compressor.settings import ComponentSettings, DataSettings, DataSource, ModelSettings, ResumeSettings, Settings
from compressor_plugins.pruning.magnitude import Magnitude
from compressor_plugins.quantization.gptq import Gptq
from compressor_plugins.quantization.int4 import Int4
from compressor_plugins.quantization.int8 import Int8
from compressor_plugins.schedules.plan import ReplayedPlan
from tests.support.command_line import call_command
from tests.support.families import save_checkpoint
from tests.support.runs import make_settings, run
from tests.support.slow import rarely
from tests.support.warm_processes import run_project

RESULTS = ("plan.json", "sequences.jsonl", "model/model.safetensors", "model/config.json")
PARTS = ComponentSettings(include=[r"layers\.[01]\.(self_attn|mlp)"])
FEW = DataSettings(prefixes=4, proof_prefixes=3, prefix_tokens=4, continuation_tokens=6)


def make_schedule(name: str, **options: object) -> Schedule:
    schedule: Schedule = installed().schedules[name](**options)
    return schedule


CASES: dict[str, tuple[Schedule, list[Compressor]]] = {
    "fdt_allocation": (make_schedule("fdt_allocation", targets=[0.3, 0.5]), [Magnitude()]),
    "budget": (make_schedule("budget", targets=[0.3, 0.5], corrections=2), [Magnitude()]),
    "budget, int": (make_schedule("budget", bits=6.0, corrections=2), [Int8(), Int4(group=16)]),
    "budget, calibrated": (make_schedule("budget", targets=[0.6], corrections=1), [Gptq()]),
    "beam": (make_schedule("beam", width=2, floor=3.0), [Int8()]),
    "evolution": (make_schedule("evolution", targets=[0.4]), [Magnitude()]),
    "global": (make_schedule("global", targets=[0.2, 0.5]), [Magnitude()]),
    "uniform": (make_schedule("uniform", targets=[0.3, 0.5]), [Magnitude()]),
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("base") / "llama", with_tokenizer=True)


def make(base: Path, case: str, **changes: object) -> Settings:
    schedule, compressors = CASES[case]
    model = ModelSettings(path=str(base))
    settings = make_settings(schedule, *compressors, model=model, components=PARTS, data=FEW)
    return replace(settings, metric={name: settings.metric[name] for name in ("fdtm", "kl")}, **changes)


@pytest.fixture
def every_answer(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each answer is a block of its own."""
    monkeypatch.setattr(answers, "BLOCK_SECONDS", 0.0)
    yield
    stop.signum = None


def stop_at_block(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next run is stopped by a signal after so many blocks."""
    left = [number]

    def check() -> None:
        left[0] -= 1
        if left[0] == 0:
            raise Stopped(signal.SIGTERM)

    monkeypatch.setattr(stop, "check", check)


OFTEN = ("budget, int",)


@pytest.mark.parametrize("where", ["in the middle", *rarely(["at both ends"])])
@pytest.mark.parametrize("case", [*OFTEN, *rarely(case for case in CASES if case not in OFTEN)])
def test_a_run_that_is_stopped_anywhere_ends_the_same(
    case: str, where: str, base: Path, tmp_path: Path, every_answer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(base, case)
    whole = run(tmp_path / "whole", replace(settings, resume=ResumeSettings(keep=True)))
    state = read_state(tmp_path / "whole")
    assert state is not None
    blocks = len(list((state.folder / ANSWERS).iterdir()))
    assert blocks >= 2
    answers = Answers(state.folder / ANSWERS).load()
    middle = 1 + blocks // 2
    for number in [middle] if where == "in the middle" else sorted({1, 2, blocks} - {middle}):
        folder = tmp_path / f"stopped {number}"
        stop_at_block(number, monkeypatch)
        with pytest.raises(Stopped) as stopped:
            run(folder, settings)
        assert str(stopped.value) == f"stopped by SIGTERM; go on with: compressor resume '{folder}'"
        assert read_status(folder)["status"] == INTERRUPTED
        monkeypatch.setattr(stop, "check", lambda: None)
        known, asked = Answers(folder / "state" / ANSWERS).load(), count_scored(monkeypatch)
        again = run(folder, settings)
        assert len(asked) <= answers - known, "what was answered before is not scored again"
        for name in RESULTS:
            assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (number, name)
        assert [r.scores for r in again.rounds] == [r.scores for r in whole.rounds]
        assert [(r.trials, r.passes) for r in again.rounds] == [(r.trials, r.passes) for r in whole.rounds]
        assert again.final is not None and whole.final is not None and again.final.scores == whole.final.scores
        assert again.notes == whole.notes
        assert sorted(path.name for path in folder.iterdir()) == sorted(
            path.name for path in (tmp_path / "whole").iterdir() if path.name != "state"
        )


def count_scored(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list that grows with every trial that an evaluator scores."""
    asked: list[object] = []
    score = Evaluator.score

    def counted(self: Evaluator, trials: list[object], *rest: object) -> object:
        asked.extend(trials)
        return score(self, trials, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "score", counted)
    return asked


def test_no_trial_is_scored_twice(
    base: Path, tmp_path: Path, every_answer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make(base, "fdt_allocation")
    asked = count_scored(monkeypatch)
    run(tmp_path / "whole", settings)
    all_of_them = len(asked)
    stop_at_block(5, monkeypatch)
    with pytest.raises(Stopped):
        run(tmp_path / "stopped", settings)
    monkeypatch.setattr(stop, "check", lambda: None)
    stored = Answers(tmp_path / "stopped" / "state" / ANSWERS).load()
    assert stored >= 15
    asked.clear()
    run(tmp_path / "stopped", settings)
    assert len(asked) == all_of_them - stored


@pytest.fixture
def stopped(base: Path, tmp_path: Path, every_answer: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run of Algorithm 1 that was stopped in its middle."""
    stop_at_block(12, monkeypatch)
    with pytest.raises(Stopped):
        run(tmp_path / "run", make(base, "fdt_allocation"))
    monkeypatch.setattr(stop, "check", lambda: None)
    return tmp_path / "run"


def test_a_refused_start_does_not_change_how_the_run_was_started(base: Path, stopped: Path, tmp_path: Path) -> None:
    (stopped / ".hydra").mkdir()
    write_command(stopped, [*SMALL, f"model.path={base}"], None)
    before = {
        path: path.read_bytes() for path in stopped.rglob("*") if path.is_file() and path.name not in (MARK, STATUS)
    }
    done = call_command(tmp_path, "run", *SMALL, f"model.path={base}", "seed=3", f"hydra.run.dir={stopped}")
    assert done.returncode == 1 and "holds an interrupted run with other answers" in done.stderr
    assert [path.name for path in before if path.read_bytes() != before[path]] == []


def test_another_configuration_is_refused_by_name_or_accepted(base: Path, stopped: Path) -> None:
    before = sorted(stopped.rglob("*"))
    with pytest.raises(ConfigError) as refused:
        run(stopped, make(base, "fdt_allocation", seed=1))
    assert str(refused.value) == (
        f"{stopped} holds an interrupted run with other answers: seed 0 → 1; take them by resume.accept=[seed], or "
        "choose another folder"
    )
    assert sorted(stopped.rglob("*")) == before and read_status(stopped)["status"] == INTERRUPTED
    run(stopped, make(base, "fdt_allocation", seed=1, resume=ResumeSettings(accept=["seed"])))


def test_interrupted_jobs_in_the_wrong_folders_say_what_the_folder_holds(base: Path, stopped: Path) -> None:
    """Accepting the difference would give the answers of one job to another."""
    many = stopped.parent / "many"
    many.mkdir()
    (many / MARK).touch()
    job = stopped.rename(many / "0")
    for accept in ([], ["seed"], ["all"]):
        with pytest.raises(OutputError) as refused:
            run(job, make(base, "fdt_allocation", seed=1, resume=ResumeSettings(accept=accept)))
        assert str(refused.value) == (
            f"{job} holds the interrupted run of another job (there → here): seed 0 → 1; move the folders of the jobs "
            "back to their numbers, or choose another by hydra.sweep.dir=DIR"
        )
    assert run(job, make(base, "fdt_allocation")).status == "done"


@pytest.mark.parametrize("key", ["data.path", "metric.perplexity.path"])
def test_another_text_is_named_by_its_setting(
    key: str, base: Path, tmp_path: Path, every_answer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text.txt"
    settings = make(base, "fdt_allocation")
    if key == "data.path":
        settings = replace(settings, data=replace(FEW, source=DataSource.text, path=str(text)))
    else:
        settings.metric["perplexity"] = installed().metrics["perplexity"](path=str(text), tokens=40, window=8)
    text.write_text("Once upon a time there was a dog. " * 40)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at_block(3, patch)
        run(tmp_path / "run", settings)
    text.write_text("The cat sat on the mat and ate the fish. " * 40)
    with pytest.raises(ConfigError) as refused:
        run(tmp_path / "run", settings)
    assert f"other answers: texts of {key}={text} changed; take them by resume.accept=[texts]" in str(refused.value)


def test_another_plan_in_the_same_file_is_refused(
    base: Path, tmp_path: Path, every_answer: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, component, out = tmp_path / "plan.json", "model.layers.0.mlp.up_proj", 48
    write_plan({component: Treatment("magnitude", 0.5, rows=(0.5,) * out)}, path)
    settings = replace(make(base, "fdt_allocation"), schedule=ReplayedPlan(path=str(path)))

    def halt(self: Run) -> None:
        raise Stopped(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "prove", halt)
        with pytest.raises(Stopped):
            run(tmp_path / "run", settings)
    plan = path.read_bytes()
    write_plan({component: Treatment("magnitude", 0.5, rows=(0.25, 0.75) * (out // 2))}, path)
    assert path.read_bytes() == plan  # only the rows beside it are others
    with pytest.raises(ConfigError, match=r"other answers: plan of schedule\.path changed; .* resume\.accept=\[plan\]"):
        run(tmp_path / "run", settings)
    write_plan({component: Treatment("magnitude", 0.25)}, path)
    with pytest.raises(ConfigError, match=r"other answers: plan of schedule\.path changed; .* resume\.accept=\[plan\]"):
        run(tmp_path / "run", settings)


def test_other_weights_are_refused(base: Path, stopped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same configuration, but a file behind it changed."""
    path = stopped / "state" / "run.json"
    state = read_state(stopped)
    assert state is not None
    state.facts["weights"] = "0" * 64
    state.write()
    with pytest.raises(ConfigError, match=r"answers: weights of model\.path changed; take them by resume.accept=\[wei"):
        run(stopped, make(base, "fdt_allocation"))
    assert path.exists() and read_status(stopped)["status"] == "failed"
    assert run(stopped, make(base, "fdt_allocation", resume=ResumeSettings(accept=["all"]))).status == "done"


def test_a_damaged_block_is_computed_again(
    base: Path, stopped: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    block = sorted((stopped / "state" / "answers").iterdir())[3]
    content = bytearray(block.read_bytes())
    content[-3] ^= 1
    block.write_bytes(content)
    run(stopped, make(base, "fdt_allocation", resume=ResumeSettings(keep=True)))
    said = f"{block} is damaged (its checksum is wrong): its answers are computed again; it is kept as {block.name}.dam"
    assert said in caplog.text and block.with_name(f"{block.name}.damaged").read_bytes() == content
    run(tmp_path / "whole", make(base, "fdt_allocation"))
    for name in RESULTS:
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("damage", ["other content", *rarely(["cut", "missing", "a folder of it"])])
def test_a_damaged_state_is_refused_or_its_answers_are_taken(
    damage: str, base: Path, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, settings = stopped / "state" / "run.json", make(base, "fdt_allocation")
    content = path.read_bytes()
    path.unlink()
    if damage == "a folder of it":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(b'{"sha256": "0", "content": {}}' if damage == "other content" else content[:100])
    before = {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()}
    with pytest.raises(ConfigError) as refused:
        run(stopped, settings)
    count = len(list((stopped / "state" / "answers").iterdir()))
    said = (
        f"the {count} files of answers and trainings beside it cannot be compared with the settings, weights and texts"
    )
    assert str(refused.value).startswith(f"{path} is damaged: ") and said in str(refused.value)
    assert "resume.accept=[state], or remove " in str(refused.value) and "\n" not in str(refused.value)
    assert {file: file.read_bytes() for file in stopped.rglob("*") if file.is_file()} == before
    if damage == "cut":
        shutil.rmtree(stopped / "state")
        assert run(stopped, settings).status == "done"
        return
    known, asked = Answers(stopped / "state" / ANSWERS).load(), count_scored(monkeypatch)
    keep = ResumeSettings(keep=True, accept=["state"])
    assert run(stopped, replace(settings, resume=keep)).status == "done"
    taken = len(asked)
    if damage == "other content":
        assert (stopped / "state" / "run.json.damaged").read_bytes() == b'{"sha256": "0", "content": {}}'
    asked.clear()
    run(tmp_path / "whole", settings)
    assert taken <= len(asked) - known
    for name in RESULTS:
        assert (stopped / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("content", ["null", "[]", '{"a": 1}', '{"content": 5}'])
def test_a_state_of_another_form_is_damaged_in_plain_words(content: str, tmp_path: Path) -> None:
    path = tmp_path / "state" / "run.json"
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(OutputError) as refused:
        read_state(tmp_path)
    assert str(refused.value) == f"{path} is damaged: it is not what a run writes"


def test_a_damaged_state_without_answers_loses_nothing(base: Path, stopped: Path) -> None:
    (stopped / "state" / "run.json").write_text("{")
    shutil.rmtree(stopped / "state" / "answers")
    assert run(stopped, make(base, "fdt_allocation")).status == "done"


def test_a_copy_without_hidden_files_says_what_is_missing(base: Path, tmp_path: Path) -> None:
    """As `cp -r run/* copy` makes it."""
    run_folder, copy = tmp_path / "run", tmp_path / "copy"
    with pytest.raises(Stopped), working_in(run_folder, "compressor run"):
        write_command(run_folder, [*SMALL, f"model.path={base}", "components.include=[layers.0]"], None)
        (run_folder / "state").mkdir()
        raise Stopped(signal.SIGTERM)
    shutil.copytree(run_folder, copy, ignore=shutil.ignore_patterns(".*"))
    rest = f"copy all hidden files too, as `cp -r OLD/. {copy}` does"
    for missing, check in (
        (".compressor and .hydra are", read_arguments),
        (".compressor and .hydra are", lambda folder: check_folder(folder, [])),
        (".compressor is", lambda folder: check_folder(folder, [])),
    ):
        if missing.endswith("is"):
            shutil.copytree(run_folder / ".hydra", copy / ".hydra")
        with pytest.raises(OutputError) as caught:
            check(copy)
        said = f"{copy} is the folder of a run without its hidden files: {missing} missing; {rest}"
        assert str(caught.value) == said
    shutil.copytree(run_folder, copy, dirs_exist_ok=True)
    assert call_command(tmp_path, "resume", str(copy), OMP_NUM_THREADS="1").returncode == 0


def test_differences_are_named_by_key() -> None:
    before = {"schedule": {"targets": [0.2], "count": 1}, "seed": 0, "tracking": {"mode": "online"}}
    after = {"schedule": {"targets": [0.6], "count": 1}, "extra": True, "tracking": {"mode": "offline"}}
    assert list_differences(before, after) == {
        "schedule.targets": "[0.2] → [0.6]",
        "seed": "0 → none",
        "extra": "none → True",
    }


SMALL = [
    "model=hf", "data.prefixes=4", "data.prefix_tokens=4", "data.continuation_tokens=6", "metric=[fdtm,kl]",
    "tracking=none", "export.verify=false", "schedule=fdt_allocation", "schedule.targets=[0.3,0.5]",
]  # fmt: skip


EVERY_ANSWER = """
import sys
from compressor.artifacts import answers
from compressor.commands.entry import main

answers.BLOCK_SECONDS = 0.0
"""
WAITING = """
import time
from pathlib import Path
from compressor.commands.stopping import stop

check = stop.check

def wait_and_check():
    while len(list(Path("out/state/answers").glob("*.safetensors"))) >= 5 and not stop.is_requested:
        time.sleep(0.01)
    check()

stop.check = wait_and_check
"""


def start_process(folder: Path, *arguments: str, waits: bool = False) -> subprocess.Popen[str]:
    """`compressor run` as a process, which writes a block after every answer.

    With `waits` it does not go on after the fifth block before a signal has come: however slow the machine is, the
    signal comes in the middle of the search.
    """
    code = f"{EVERY_ANSWER}{WAITING if waits else ''}sys.argv[0] = 'compressor'; main()"
    command = [sys.executable, "-c", code, "run", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_blocks(folder: Path, count: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while len(list((folder / "state" / "answers").glob("*.safetensors"))) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("signum", [signal.SIGTERM, *rarely([signal.SIGINT, signal.SIGHUP])])
def test_a_signal_ends_a_run_with_the_command_that_goes_on(signum: signal.Signals, base: Path, tmp_path: Path) -> None:
    arguments = [*SMALL, f"model.path={base}", "components.include=[layers]"]
    process = start_process(tmp_path, *arguments, "hydra.run.dir=out", waits=True)
    wait_for_blocks(tmp_path / "out", 5, process)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signum
    assert errors.splitlines() == [
        "stopping after this block of work, in at most 20 s; once more stops at once",
        f"error: stopped by {signum.name}; go on with: compressor resume {tmp_path / 'out'}",
    ]
    assert read_status(tmp_path / "out")["status"] == INTERRUPTED
    done = call_command(tmp_path, "resume", "out", OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert "going on with" in done.stdout and read_status(tmp_path / "out")["status"] == DONE
    again = call_command(tmp_path, "resume", "out")
    assert (again.returncode, again.stdout) == (0, "the run in out is done; there is nothing to go on with\n")


def test_a_run_that_is_done_says_what_is_gone_and_takes_no_settings(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "out"
    run(folder, make(base, "uniform"))
    terminal = Terminal()
    with pytest.raises(
        ConfigError, match=r"is done, and seed=3 changes nothing in it; leave that out, or start another"
    ):
        resume([str(folder), "seed=3"], terminal)
    assert resume([str(folder), "resume.accept=[versions]"], terminal) == 0 and not caplog.records
    (folder / "plan.json").unlink()
    shutil.rmtree(folder / "model")
    assert resume([str(folder)], terminal) == 0
    (record,) = caplog.records
    assert record.getMessage() == (
        f"the run in {folder} is done, and plan.json, model of it are gone; to have what is gone, start the run in "
        "another folder"
    )


def test_relative_paths_are_those_of_the_directory_of_the_start(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, elsewhere = tmp_path / "start", tmp_path / "elsewhere"
    start.mkdir(), elsewhere.mkdir()
    (start / "text.txt").write_text("Once upon a time there was a dog. " * 40)
    monkeypatch.chdir(start)
    with pytest.raises(Stopped), working_in(start / "out", "compressor run"):  # before the first answer
        arguments = [*SMALL, f"model.path={base}", "components.include=[layers]", "data=text", "data.path=text.txt"]
        write_command(start / "out", arguments, None)
        raise Stopped(signal.SIGTERM)
    done = call_command(elsewhere, "resume", "../start/out", OMP_NUM_THREADS="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"relative paths are those of {start}, where the run was started" in done.stdout
    assert read_status(start / "out")["status"] == DONE and not list(elsewhere.iterdir())


KILLED = """
import os, sys
from compressor.commands.entry import main
from compressor.commands.forecast import Forecast

Forecast.build_reference = lambda self: os.kill(os.getpid(), 9)
sys.argv[0] = "compressor"
main()
"""


def test_a_forecast_that_was_killed_is_started_again(base: Path, tmp_path: Path) -> None:
    arguments = ["forecast", *SMALL[:4], f"model.path={base}", "hydra.run.dir=out"]
    assert run_project([sys.executable, "-c", KILLED, *arguments], tmp_path).returncode == -signal.SIGKILL
    done = call_command(tmp_path, "resume", "out")
    command = shlex.join(["compressor", *arguments])
    said = f"error: out holds a forecast, which does not go on; start it again: {command}\n"
    assert (done.returncode, done.stderr) == (1, said)


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        ("compressor.run(settings)", "holds a run that was not started by `compressor run`; start it again"),
        (
            "compressor forecast hydra.callbacks.x._target_=os.system",
            "a forecast, which does not go on; start it again",
        ),
        ("compressor forecast 'a", "a forecast, which does not go on; start it again"),
        (5, "holds no run that can go on; give the folder of an interrupted `compressor run`"),
    ],
)
def test_advice_for_a_folder_without_arguments_runs_no_code(command: object, advice: str, tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"status": INTERRUPTED, "command": command}))
    with pytest.raises(OutputError) as caught:
        read_arguments(tmp_path)
    assert str(caught.value).endswith(advice)


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of the command line that nobody stopped."""
    folder = tmp_path_factory.mktemp("undisturbed")
    arguments = [*SMALL, f"model.path={base}", "components.include=[layers.0]", "hydra.run.dir=out"]
    assert call_command(folder, "run", *arguments, OMP_NUM_THREADS="1").returncode == 0
    return folder / "out"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_a_killed_run_goes_on_and_ends_the_same(seed: int, base: Path, undisturbed: Path, tmp_path: Path) -> None:
    """SIGKILL at a random moment of any phase, twice; no litter stays."""
    arguments = [*SMALL, f"model.path={base}", "components.include=[layers.0]", "hydra.run.dir=out"]
    draw = np.random.default_rng(seed)
    for _ in range(2):
        process = start_process(tmp_path, *arguments)
        until = time.monotonic() + draw.uniform(0.5, 12)
        while process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.kill()
        process.communicate()
    done = call_command(tmp_path, "run", *arguments, OMP_NUM_THREADS="1")
    finished = "already holds a finished run" in done.stderr
    assert finished or (done.returncode, done.stderr) == (0, "")
    for name in RESULTS:
        assert (tmp_path / "out" / name).read_bytes() == (undisturbed / name).read_bytes()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in undisturbed.iterdir()}


@pytest.mark.slow
def test_a_multirun_runs_only_what_is_missing(base: Path, tmp_path: Path) -> None:
    arguments = [
        *SMALL[:-2], f"model.path={base}", "components.include=[layers.0]", "schedule=uniform",
        "schedule.targets=[0.2],[0.3],[0.4]", "hydra.sweep.dir=sweep", "-m",
    ]  # fmt: skip
    assert call_command(tmp_path, "run", *arguments).returncode == 0
    second = tmp_path / "sweep" / "1"
    status = json.loads((second / "status.json").read_text())
    (second / "status.json").write_text(json.dumps(status | {"status": INTERRUPTED}))
    times = {job: (tmp_path / "sweep" / job / "report.json").stat().st_mtime_ns for job in "012"}
    for again in (arguments, None):
        (tmp_path / "sweep" / "comparison.json").unlink()
        done = call_command(tmp_path, *(["run", *again] if again else ["resume", "sweep"]))
        assert done.returncode == 0, done.stderr
        assert "job 0: was done before" in done.stdout and "job 2: was done before" in done.stdout
    changed = {job for job in "012" if (tmp_path / "sweep" / job / "report.json").stat().st_mtime_ns != times[job]}
    assert changed == {"1"}
    assert len(json.loads((tmp_path / "sweep" / "comparison.json").read_text())) == 3


def test_a_job_of_a_multirun_names_the_multirun(tmp_path: Path) -> None:
    sweep = tmp_path / "a sweep"
    (sweep / "0").mkdir(parents=True)
    write_command(sweep, ["seed=0,1", "-m"], Jobs({}, [], {}))
    done = call_command(tmp_path, "resume", "a sweep/0")
    assert done.returncode == 1
    assert done.stderr == (
        f"error: a sweep/0 is a job of the multirun in {sweep}, which goes on as a whole; use compressor resume "
        f"'{sweep}'\n"
    )


EXAMPLE = "; give that of the run, for example compressor resume outputs/2026-11-27/12-00-00\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], f"error: `compressor resume` takes a folder, and resume.accept=[…], got nothing{EXAMPLE}"),
        (["a", "b"], f"error: `compressor resume` takes a folder, and resume.accept=[…], got a b{EXAMPLE}"),
        (["seed=1"], f"error: `compressor resume` takes a folder, and resume.accept=[…], got seed=1{EXAMPLE}"),
        (
            ["nowhere"],
            "error: nowhere holds no run that can go on; give the folder of an interrupted `compressor run`\n",
        ),
    ],
)
def test_what_cannot_be_resumed_is_one_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    done = call_command(tmp_path, "resume", *arguments)
    assert (done.returncode, done.stderr) == (1, message)
