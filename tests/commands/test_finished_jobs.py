"""A multirun believes a finished job only if it is the job that is asked for, on the same inputs."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from compressor.artifacts.plan_file import write_plan
from compressor.artifacts.run_status import DONE, INTERRUPTED, read_status
from compressor.commands import input_facts
from compressor.commands.finished_jobs import find_finished
from compressor.contracts import Treatment
from compressor.errors import CompressorError, ConfigError, OutputError
from compressor.plugins import installed
from compressor.settings import ComponentSettings, DataSettings, DataSource, ModelSettings, ResumeSettings, Settings
from compressor_plugins.schedules.plan import ReplayedPlan
from tests.support.command_line import call_command
from tests.support.families import save_checkpoint
from tests.support.runs import make_settings, run
from tests.support.slow import rarely

COMPONENT = "model.layers.0.mlp.up_proj"
ROWS = 48
FEW = (
    "model=hf", "model.path=llama", "data.prefixes=2", "data.prefix_tokens=4", "data.continuation_tokens=4",
    "tracking=none",
    "metric=[fdtm]", "schedule=uniform", "schedule.targets=[0.5]", "export.verify=false", "hydra.sweep.dir=sweep", "-m",
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_checkpoint("llama", tmp_path_factory.mktemp("base") / "llama", with_tokenizer=True)


def change_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors[f"{COMPONENT}.weight"][0, 0] += 0.25
    save_file(tensors, path, {"format": "pt"})


def read_rows(place: Path) -> dict[str, tuple[str, str | None, bool]]:
    """The status and error of each job, and whether there are scores."""
    rows = json.loads((place / "sweep" / "comparison.json").read_text())
    return {row["job"]: (row["status"], row["error"], bool(row["scores"])) for row in rows}


@pytest.fixture(scope="module")
def swept(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place with a model and a multirun of two jobs."""
    place = tmp_path_factory.mktemp("swept")
    shutil.copytree(base, place / "llama")
    assert call_command(place, "run", *FEW, "seed=1,2").returncode == 0
    return place


def test_jobs_in_the_wrong_folder_are_no_results(swept: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(swept, tmp_path / "place"))
    sweep = place / "sweep"
    (sweep / "0").rename(sweep / "2")
    (sweep / "1").rename(sweep / "0")
    shutil.copytree(sweep / "2", sweep / "1")
    done = call_command(place, "run", *FEW, "seed=1,2,3")
    rest = "move it away, or choose another by hydra.sweep.dir=DIR"
    said = [
        f"{sweep / job} holds the finished run of another job (there → here): seed {there} → {here}; {rest}"
        for job, there, here in (("0", 2, 1), ("1", 1, 2), ("2", 1, 3))
    ]
    assert (done.returncode, done.stderr) == (1, "".join(f"error: job {i}: {line}\n" for i, line in enumerate(said)))
    assert read_rows(place) == {str(job): ("refused", line, False) for job, line in enumerate(said)}
    assert "run 2 refused" in done.stdout


def test_other_weights_are_said_and_not_mixed_in_one_table(swept: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(swept, tmp_path / "place"))
    change_weights(place / "llama")
    shutil.rmtree(place / "sweep" / "1")
    done = call_command(place, "run", *FEW, "seed=1,2")
    assert done.returncode == 1 and "/0 holds a finished run with other results: weights " in done.stderr
    assert [row[0::2] for row in read_rows(place).values()] == [("refused", False), (DONE, True)]
    done = call_command(place, "run", *FEW, "seed=1,2", "resume.accept=[weights]")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("was done before") == 2
    assert [row[0::2] for row in read_rows(place).values()] == [(DONE, True)] * 2


def list_states(folder: Path) -> dict[str, tuple[bytes | None, int]]:
    """Content and time of every file and folder in a folder."""
    return {
        str(path.relative_to(folder)): (path.read_bytes() if path.is_file() else None, path.stat().st_mtime_ns)
        for path in (folder, *folder.rglob("*"))
    }


def interrupt(job: Path) -> None:
    """The job was not finished; a file that shares the status of before keeps it."""
    status = read_status(job)
    (job / "status.json").unlink()
    (job / "status.json").write_text(json.dumps(status | {"status": INTERRUPTED}))


def test_finished_jobs_are_not_touched(swept: Path, tmp_path: Path) -> None:
    """Neither by a command that goes on in a copy made of hard links, nor by one that adds a job, nor by `resume`."""
    place = Path(shutil.copytree(swept, tmp_path / "place"))
    sweep, linked = place / "sweep", place / "linked"
    (sweep / "0" / "compressor.log").write_text("mine")
    shutil.copytree(sweep, linked, copy_function=os.link)
    interrupt(linked / "1")
    before, copy = list_states(sweep), list_states(linked / "0")
    done = call_command(place, "resume", "linked")
    assert (done.returncode, done.stderr) == (0, "") and "job 0: was done before" in done.stdout
    assert list_states(sweep) == before and list_states(linked / "0") == copy
    assert read_status(linked / "1")["status"] == DONE
    done = call_command(place, "run", *FEW, "seed=1,2,3")
    assert (done.returncode, done.stderr) == (0, "")
    after = list_states(sweep)
    assert {name: state for name, state in after.items() if name[0] in "01"} == {
        name: state for name, state in before.items() if name[0] in "01"
    }
    assert len(read_rows(place)) == 3
    again = place / "again"
    shutil.copytree(sweep, again, copy_function=os.link)
    jobs = {name: list_states(again / name) for name in "012"}
    done = call_command(place, "resume", "again")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("was done before") == 3
    assert list_states(sweep) == after
    assert {name: list_states(again / name) for name in "012"} == jobs


@pytest.mark.parametrize("change", ["folders", "weights"])
def test_resume_compares_the_jobs_of_a_multirun_that_is_done(change: str, swept: Path, tmp_path: Path) -> None:
    """The table of before says nothing of where the folders are now, and of what has changed since."""
    place = Path(shutil.copytree(swept, tmp_path / "place"))
    sweep = place / "sweep"
    if change == "weights":  # of the model where the multirun was started
        shutil.rmtree(sweep)
        assert call_command(place, "run", *FEW, "seed=1,2").returncode == 0
        change_weights(place / "llama")
    else:
        for old, new in (("0", "x"), ("1", "0"), ("x", "1")):
            (sweep / old).rename(sweep / new)
    said = {"folders": "holds the finished run of another job", "weights": "other results: weights "}[change]
    for _ in range(2):
        done = call_command(place, "resume", "sweep")
        assert done.returncode == 1 and done.stderr.count(said) == 2
        assert [row[0::2] for row in read_rows(place).values()] == [("refused", False)] * 2


@pytest.mark.parametrize("damage", ["no table", "a job", *rarely(["a table without rows", "a damaged record"])])
def test_resume_goes_on_whatever_is_missing_of_jobs_and_table(damage: str, swept: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(swept, tmp_path / "place"))
    sweep = place / "sweep"
    if damage == "no table":
        (sweep / "comparison.json").unlink()
    elif damage == "a job":
        interrupt(sweep / "1")
    elif damage == "a table without rows":
        (sweep / "comparison.json").write_text("[5]")
    else:
        (sweep / ".hydra" / "arguments.json").write_text('{"jobs": {"config": 1, "values": [2], "sweeper": 3}}')
    done = call_command(place, "resume", "sweep")
    if damage == "a damaged record":
        assert done.returncode == 1 and done.stderr.count("\n") == 1 and "is damaged" in done.stderr
        return
    assert (done.returncode, done.stderr) == (0, "") and "job 0: was done before" in done.stdout
    assert [row[0::2] for row in read_rows(place).values()] == [(DONE, True)] * 2


def test_the_log_of_a_job_has_only_its_own_lines(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "llama")
    done = call_command(tmp_path, "run", *FEW, "seed=1,2", "forecast.check=1")
    assert done.returncode == 0 and len(done.stderr.splitlines()) == 2
    for job in "01":
        (line,) = (tmp_path / "sweep" / job / "compressor.log").read_text().splitlines()
        assert "WARNING compressor.commands.run: `forecast.check` has no effect" in line


@pytest.fixture
def settings(base: Path, tmp_path: Path) -> Settings:
    """A run of a plan with rows, on a text, in files that may change."""
    shutil.copytree(base, tmp_path / "llama")
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog " * 50)
    write_plan({COMPONENT: Treatment("magnitude", 0.5, rows=(0.5,) * ROWS)}, tmp_path / "plan.json")
    return replace(
        make_settings(ReplayedPlan(path=str(tmp_path / "plan.json"))),
        model=ModelSettings(path=str(tmp_path / "llama")),
        components=ComponentSettings(include=["mlp"]),
        data=DataSettings(
            DataSource.text, str(tmp_path / "text.txt"), prefixes=2, prefix_tokens=4, continuation_tokens=4
        ),
    )


def change_rows(place: Path) -> None:
    plan = (place / "plan.json").read_bytes()
    write_plan({COMPONENT: Treatment("magnitude", 0.5, rows=(0.25, 0.75) * (ROWS // 2))}, place / "plan.json")
    assert (place / "plan.json").read_bytes() == plan


def change_versions(place: Path) -> None:
    path = place / "run" / "report.json"
    report = json.loads(path.read_text())
    report["versions"] |= {"torch": "1.0", "wandb": "0.1"}
    path.write_text(json.dumps(report))


def append(name: str) -> Callable[[Path], None]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes() + b" ") and None


CHANGES: dict[str, Callable[[Path], None]] = {
    "weights": lambda place: change_weights(place / "llama"),
    "texts": append("text.txt"),
    "texts by another tokenizer": append("llama/tokenizer.json"),
    "plan by its rows": change_rows,
    "plan": append("plan.json"),
    "versions": change_versions,
    "code": lambda place: None,
}


def test_a_finished_job_on_other_inputs_is_refused_or_accepted(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plugins, config = installed(), {"seed": settings.seed}
    folder = tmp_path / "run"
    final = run(folder, settings).final
    assert final is not None
    mean = next(iter(final.scores.values())).mean
    assert find_finished(folder, settings, plugins, config) == mean
    assert find_finished(tmp_path / "missing", settings, plugins, config) is None
    with pytest.raises(OutputError, match=r"seed 0 → 1; move it away, or choose another by hydra\.sweep\.dir=DIR$"):
        find_finished(folder, replace(settings, resume=ResumeSettings(accept=["all"])), plugins, {"seed": 1})
    accepted: list[str] = []
    for change, make in CHANGES.items():
        make(tmp_path)
        if change == "code":
            monkeypatch.setattr(input_facts, "hash_code", lambda *given: "other code")
        name = change.partition(" ")[0]
        if name not in accepted:
            settings.resume.accept = [*accepted]
            with pytest.raises(ConfigError, match=rf"holds a finished run with other results: {name}[ .]") as caught:
                find_finished(folder, settings, plugins, config)
            assert str(caught.value).endswith(
                f"; take them by resume.accept=[{name}], move it away, or choose another by hydra.sweep.dir=DIR"
            )
        accepted.append(name)
        settings.resume.accept = [*accepted]
        assert find_finished(folder, settings, plugins, config) == mean


@pytest.mark.parametrize("change", ["texts by another tokenizer", "plan by its rows"])
def test_what_lies_beside_a_file_belongs_to_it(change: str, settings: Settings, tmp_path: Path) -> None:
    before = input_facts.list_input_facts(settings, settings.metric)
    CHANGES[change](tmp_path)
    after = input_facts.list_input_facts(settings, settings.metric)
    assert [name for name in before if before[name] != after[name]] == [change.partition(" ")[0]]


def test_a_report_of_an_earlier_version_is_believed(settings: Settings, tmp_path: Path) -> None:
    run(tmp_path / "run", settings)
    report = tmp_path / "run" / "report.json"
    report.write_text(
        json.dumps({key: value for key, value in json.loads(report.read_text()).items() if key != "facts"})
    )
    change_weights(tmp_path / "llama")
    assert find_finished(tmp_path / "run", settings, installed(), {"seed": settings.seed}) is not None
    shutil.rmtree(tmp_path / "llama")
    report.write_text("{")
    with pytest.raises(CompressorError, match="is not valid JSON"):
        find_finished(tmp_path / "run", settings, installed(), {"seed": settings.seed})
