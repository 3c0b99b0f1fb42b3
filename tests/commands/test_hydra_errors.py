"""Whatever Hydra refuses, or code that its settings name, is one line of ours with exit status 1."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from compressor.commands.checked_overrides import advise_quotes, check_sweeps, complete_overrides, parse_override
from compressor.commands.command_record import read_arguments
from compressor.commands.config import open_hydra, store_schemas
from compressor.errors import CompressorError, ConfigError, OutputError
from compressor.plugins import installed
from tests.support.command_line import call_command
from tests.support.families import save_checkpoint
from tests.support.slow import rarely, rarely_cases

FEW = [
    "schedule=uniform", "data.prefixes=2", "data.prefix_tokens=4", "data.continuation_tokens=4", "tracking=none",
    "export.verify=false", "components.include=[layers.0.self_attn]",
]  # fmt: skip
HARD = [
    "my model, v2",
    "a'b",
    'a"b',
    "a${b}",
    "a\\b",
    *rarely(["a[b", "a(b", "a=b", "a$b", "a{b}, c", "a#b", " a ", "$HOME", "a;b&c"]),
]
"""Names of folders that a shell, Hydra or OmegaConf would read otherwise."""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["+hydra.callbacks.x._target_=os.system"], "Hydra cannot start with these settings: Target 'os.system' is bl"),
        (["hydra.run.dir=${nope}"], "`hydra.run.dir`: Interpolation key 'nope' not found"),
        (["model=hf", "model.path=a${nope}"], "Interpolation key 'nope' not found; check model=hf"),
        (["hydra.run.dir=a\udcff"], r"is not UTF-8, which every name and text must be"),
        (["hydra/launcher=nope"], "unknown hydra/launcher `nope`; known: basic"),
        (["hydra.sweeper.params.seed=1"], "Unexpected type for root: NoneType; check hydra.sweeper.params.seed=1"),
        (["--config-dir", "/nope"], "--config-dir is not supported"),
        (["-m", "hydra.sweeper=null"], "Hydra cannot start with these settings: "),
        (["-m", "+hydra.sweeper.params={seed:3}"], "Hydra cannot start with these settings: "),
        (["-m", "--cfg", "job"], "--multirun and --cfg exclude each other"),
        (["-m", "seed=range(1,1)"], "`seed=range(1,1)` names no value"),
        (
            ["model=hf", "model.path=my model, v2"],
            "add -m for a run with each of them; a text with special ",
        ),
        *rarely_cases(
            [
                (
                    ["+hydra.callbacks.x._target_=hydra.nope"],
                    "Hydra cannot start with these settings: Error locating target",
                ),
                (["~compressor=1"], "`~compressor=1` names no option; write ~compressor"),
                (["sweep.batch=9223372036854775808"], "`sweep.batch` must be at most 2147483647"),
                (["hydra/sweeper=nope"], "unknown hydra/sweeper `nope`; known: basic"),
                (["hydra.launcher.nope=3"], "Could not override 'hydra.launcher.nope'"),
                (["hydra.job.name=${nope}"], "`hydra.job.name` cannot be changed, got '${nope}'"),
                (["--config-name", "nope"], "--config-name is not supported"),
                (["--resolve"], "--resolve says how --cfg shows"),
                (["-m", "schedule=glob(nothing*)"], "`schedule=glob(nothing*)` names no value"),
                (
                    ["-m", "seed=1,2", "hydra.sweep.subdir=${nope}"],
                    "`hydra.sweep.subdir` cannot be changed, got '${nope}'",
                ),
            ]
        ),
    ],
)
def test_one_line_and_exit_status_1(line: list[str], message: str, tmp_path: Path) -> None:
    done = call_command(tmp_path, "run", *line)
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1 and said.startswith("error: ") and message.replace("check model=hf", "check ") in said
    assert not list(tmp_path.rglob("report.json"))


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = call_command(tmp_path, "run", "--debug", "+hydra.callbacks.x._target_=hydra.nope")
    assert done.returncode == 1 and "Traceback" in done.stderr


@pytest.mark.parametrize("name", HARD)
def test_the_advice_on_quotes_gives_the_path_through_shell_and_hydra(name: str) -> None:
    """What the error shows is pasted into a shell, and Hydra reads the name from what the shell gives it."""
    advice = advise_quotes(f"model.path={name}")
    assert advice is not None
    typed = advice.partition("shell's: ")[2]
    code = "import sys, json; print(json.dumps(sys.argv[1:]))"
    shell = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {typed}"
    (given,) = json.loads(subprocess.run(shell, shell=True, capture_output=True, text=True, check=True).stdout)
    store_schemas(installed())
    with open_hydra():
        try:
            _, composed = complete_overrides(["model=hf", given], installed())
            assert composed.model.path == name
        except CompressorError as error:  # there is no such folder
            assert repr(name)[1:-1] in str(error) or name in str(error)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["it's [1]", "my model, v2", "a=b", "a$b"])
def test_a_model_and_a_folder_of_any_name_work_and_what_is_printed_too(name: str, tmp_path: Path) -> None:
    save_checkpoint("llama", tmp_path / name, with_tokenizer=True)
    typed = str(advise_quotes(f"model.path={name}")).partition("shell's: ")[2]
    place = str(advise_quotes(f"hydra.run.dir=out {name}")).partition("shell's: ")[2]
    few = [word for word in FEW if not word.startswith(("schedule", "tracking", "export"))]
    first = call_command(tmp_path, "forecast", "model=hf", *shlex.split(typed), *shlex.split(place), *few)
    assert (first.returncode, first.stderr) == (0, ""), first.stderr
    command = first.stdout.splitlines()[-1].partition(" %: ")[2]
    words = json.loads(run_in_shell(f"{command} metric=fdtm tracking=none export.verify=false hydra.run.dir=made"))
    made = call_command(tmp_path, *words)
    assert (made.returncode, made.stderr) == (0, ""), made.stderr


def run_in_shell(command: str) -> str:
    """The arguments that a shell gives to the program of a command, as JSON."""
    code = "import sys, json; print(json.dumps(sys.argv[1:]))"
    replaced = f"{shlex.quote(sys.executable)} -c {shlex.quote(code)}{command.removeprefix('compressor')}"
    return subprocess.run(replaced, shell=True, capture_output=True, text=True, check=True).stdout


def test_several_values_need_a_multirun() -> None:
    with pytest.raises(ConfigError, match=r"`seed=1,2` has several values; add -m for a run .*; for one list write"):
        check_sweeps(["seed=1,2"], multirun=False)
    check_sweeps(["seed=1,2"], multirun=True)
    with pytest.raises(ConfigError, match=r"`hydra.run.dir=a,b` has several values, and one is needed; .*\"a,b\"'"):
        check_sweeps(["hydra.run.dir=a,b"], multirun=True)
    assert parse_override("seed=1", None).value() == 1


def record(folder: Path, arguments: object, key: object = "hydra.run.dir") -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "arguments.json").write_text(json.dumps({"arguments": arguments, "key": key}))
    return folder


@pytest.mark.parametrize(
    "refused",
    [
        "+hydra.callbacks.x._target_=os.system",
        "+hydra.callbacks={x: {_target_: os.system}}",
        "hydra.launcher={_target_: os.system}",
        "hydra.launcher._target_=os.system",
        "+hydra.launcher.setup=[reboot]",
        "+hydra.job.env_set.LD_PRELOAD=x.so",
        "hydra.searchpath=[file:///tmp]",
        "hydra.sweep.subdir=../../elsewhere",
        "hydra/job_logging=other",
        "hydra/sweeper=nevergrad",
        "model.trust_remote_code=true",
        "++model.trust_remote_code=1",
        "model.trust_remote_code=true,false",
        "+anything._target_=os.system",
        "tracking.project=${oc.env:HOME}",
    ],
)
def test_a_folder_of_somebody_else_cannot_run_code(refused: str, tmp_path: Path) -> None:
    folder = record(tmp_path / "out", ["model=hf", refused, "seed=1"])
    done = call_command(tmp_path, "resume", "out")
    (said,) = done.stderr.splitlines()
    assert done.returncode == 1 and shlex.quote(refused) in said and "because it can run code" in said
    assert said.endswith(f"give it again: {shlex.join(['compressor', 'resume', 'out', refused])}")
    assert [path.name for path in folder.iterdir()] == [".hydra"]


def test_what_could_run_code_is_resumed_where_it_is_given_again(tmp_path: Path) -> None:
    folder = record(tmp_path / "out", ["model=hf", "model.trust_remote_code=true"])
    assert "model.trust_remote_code=true" in read_arguments(folder, ["model.trust_remote_code=true"])
    with pytest.raises(ConfigError, match=r"got seed=2; an interrupted run keeps its settings"):
        read_arguments(folder, ["model.trust_remote_code=true", "seed=2"])


def test_what_cannot_run_code_is_resumed(tmp_path: Path) -> None:
    """The folder where it is now takes the place of the folder where it was, so that it stands there once."""
    given = ["-m", "seed=1,2", "hydra/launcher=basic", "hydra.verbose=true", "model.trust_remote_code=false"]
    taken = read_arguments(record(tmp_path / "out", [*given, "hydra.sweep.dir=before"], "hydra.sweep.dir"))
    assert taken == [*given[1:], f"hydra.sweep.dir='{tmp_path / 'out'}'", "-m"]


@pytest.mark.parametrize(
    ("arguments", "key"),
    [([1], "hydra.run.dir"), ("seed=1", "hydra.run.dir"), ([["seed=1"]], "hydra.run.dir"), (None, "hydra.run.dir"),
     (["seed=1"], "hydra.job.name"), (["seed=1"], ["hydra.run.dir"]), (["seed=(["], "hydra.run.dir"),
     (["--nope"], "hydra.run.dir"), (["a\0b=1"], "hydra.run.dir"), (["seed=1", "--cfg", "job"], "hydra.run.dir"),
     (["seed=1", "--help"], "hydra.run.dir"), (["--info"], "hydra.run.dir")],
)  # fmt: skip
def test_arguments_that_are_none_are_one_line(arguments: object, key: object, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"arguments\.json is damaged"):
        read_arguments(record(tmp_path / "out", arguments, key))
