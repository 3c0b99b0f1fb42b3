"""The command line as a user meets it: real processes, exit codes, one-line errors, sweeps."""

import json
import re
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from compressor.commands.checked_overrides import complete_overrides
from compressor.commands.config import (
    add_overrides,
    build_settings,
    compose,
    open_hydra,
    parse_arguments,
    replace_overrides,
    store_schemas,
)
from compressor.errors import ConfigError
from compressor.plugins import installed
from tests.support.command_line import MAIN, call_command, call_fresh_command
from tests.support.families import save_checkpoint
from tests.support.slow import rarely, rarely_cases
from tests.support.wandb_log import read_log
from tests.support.warm_processes import run_project

CONF = Path(__file__).parents[2] / "conf"
SMALL = [
    "data.prefixes=4", "data.prefix_tokens=6", "data.continuation_tokens=8", "metric=[fdtm,kl]",
    "tracking=none", "export.verify=false", "components.include=[layers.0.self_attn]",
]  # fmt: skip


def check_overrides_of(*overrides: str) -> None:
    plugins = installed()
    store_schemas(plugins)
    with open_hydra():
        build_settings(complete_overrides(overrides, plugins)[1])


def test_a_run_ends_with_a_table_and_the_path_of_the_report(tmp_path: Path) -> None:
    done = call_fresh_command(
        tmp_path, "run", "schedule=uniform", "schedule.targets=[0.3]", "hydra.run.dir=out", *SMALL
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "fdt" in done.stdout.lower()
    assert done.stdout.splitlines()[-1].endswith("/out/report.html")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["status"] == "done"
    assert report["config"]["schedule"] == {"name": "uniform", "targets": [0.3]}
    assert set(report["versions"]) >= {"compressor", "python", "torch", "transformers"}
    assert "schedule=uniform" in report["command"]
    assert (tmp_path / "out" / ".hydra" / "overrides.yaml").exists()


@pytest.mark.parametrize("mode", ["exact", *rarely(["approximate"])])
def test_a_setting_that_was_removed_is_one_warning(tmp_path: Path, mode: str) -> None:
    given = ["sweep.racing=true", f"sweep.mode={mode}", "schedule=uniform", "schedule.targets=[0.3]"]
    done = call_command(tmp_path, "run", *given, "hydra.run.dir=out", *SMALL)
    assert done.returncode == 0
    unused = "`sweep.mode=approximate` has no effect with schedule=uniform, which compares no trials; leave it out"
    assert done.stderr.splitlines() == [
        "WARNING: `sweep.racing` is ignored: racing was removed, because it measured no gain; leave the setting out",
        *([f"WARNING: {unused}"] if mode == "approximate" else []),
    ]


def test_a_multirun_ends_in_one_table_and_a_failing_job_stops_no_other(tmp_path: Path) -> None:
    evaluator = ["schedule=uniform", "-m", "schedule.targets=[0.2],[1.5],[0.4]", "hydra.sweep.dir=sweep"]
    done = call_command(tmp_path, "run", *evaluator, *SMALL)
    assert done.returncode == 1
    errors = done.stderr.strip().splitlines()
    assert len(errors) == 1 and "1.5" in errors[0]
    rows = json.loads((tmp_path / "sweep" / "comparison.json").read_text())
    assert [row["status"] for row in rows] == ["done", "failed", "done"]
    assert rows[0]["amount"] == pytest.approx(0.2, abs=1e-3)
    assert rows[2]["amount"] == pytest.approx(0.4, abs=1e-3)
    assert "comparison.json" in done.stdout


@pytest.mark.parametrize(
    "arguments", [[], ["seed=1", "-m"], ["-m", "seed=1"], ["--cfg", "job", "seed=1"], ["a=1", "-m", "b=2,3"]]
)
def test_overrides_are_added_where_flags_let_them(arguments: list[str]) -> None:
    added = add_overrides(arguments, before=["seed=0"], after=["seed=2"])
    given = [word for word in arguments if "=" in word]
    assert parse_arguments(added).overrides == ["seed=0", *given, "seed=2"]
    assert [word for word in added if word.startswith("-")] == [word for word in arguments if word.startswith("-")]


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_flag_may_stand_between_overrides(flag: str) -> None:
    arguments = replace_overrides(["model=tiny", flag, "seed=1,2"], ["model=tiny", "seed=1,2", "data=self"])
    parsed = parse_arguments(arguments)
    assert parsed.multirun and parsed.overrides == ["model=tiny", "seed=1,2", "data=self"]
    assert arguments == ["model=tiny", "seed=1,2", "data=self", flag], "Hydra takes no flag in between"


@pytest.fixture(scope="module")
def shown_help(tmp_path_factory: pytest.TempPathFactory) -> str:
    done = call_command(tmp_path_factory.mktemp("help"), "--help")
    assert done.returncode == 0
    return done.stdout


def test_help_shows_every_group_and_plugin(shown_help: str) -> None:
    groups = {path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("hydra", "__pycache__")}
    words = set(shown_help.replace(",", " ").replace(":", " ").split())
    assert groups <= words
    for registry in installed().registries():
        assert set(registry) <= words


def test_help_explains_the_words_that_keys_use(shown_help: str) -> None:
    explained = shown_help.partition("What some keys mean")[2].partition("The configuration")[0]
    for word in (
        "amount", "schedule.size", "corrections", "schedule.granularity", "compressor.*.granularity", "int4, rtn",
        "proof_prefixes", "sweep.*", "sweep.screen", "sweep.lazy", "sweep.audit",
    ):  # fmt: skip
        assert re.search(rf"^ +\S*{re.escape(word)}.*  ", explained, flags=re.MULTILINE), word


@pytest.mark.parametrize("arguments", [["plugins", "--help"], *rarely([["resume", "-h"], ["resume", "out", "--help"]])])
def test_every_command_shows_the_help(arguments: list[str], shown_help: str, tmp_path: Path) -> None:
    assert call_command(tmp_path, *arguments).stdout == shown_help


def test_plugins_are_listed(tmp_path: Path) -> None:
    plain, facts = call_command(tmp_path, "plugins"), call_command(tmp_path, "plugins", "--json")
    listed = json.loads(facts.stdout)
    assert listed["failures"] == []
    for registry in installed().registries():
        assert set(listed[registry.plural]) == set(registry)
        assert all(name in plain.stdout for name in registry)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rum"], "unknown command `rum`; did you mean `run`"),
        (["run", "tracking.backend=wandd"], "`tracking.backend` must be one of wandb, none, got 'wandd'"),
        (["run", "metric=[]"], "`metric` must name at least one option, got []; known: divergent_perplexity, "),
        (["run", "hydra.run.dir=null"], "`hydra.run.dir` must be a text, got null; correct it or leave it out"),
        (["run", "schedule=[budget,uniform]"], "`schedule` takes one option, got budget,uniform; choose one, or run"),
        (["run", "schedule=plan", "schedule.targets=[0.5]"], "is an option of budget, uniform, "),
        (["run", "resume.accept=[thread]"], "nothing is called `thread`; did you mean `threads`?"),
        (["run", "compressor.int8.group=32"], "is an option of a compressor that is not chosen; add compressor=int8"),
        (
            ["run", "model.dtype=float64"],
            "must be one of auto, float32, bfloat16, float16, got 'float64'",
        ),
        (["run", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["run", "model.device=cuda"], "CUDA"),
        (["run", "data.continuation_tokens=4096"], "the model's context of 512"),
        (["run", "schedule=uniform", "compressor=int8", "schedule.targets=[0.3]"], "int8 offers"),
        (["run", "~schedule.targets"], "`schedule.targets` must have a value; leave it out for its default, or write "),
        (["run", "memory.host=1MiB"], "of memory for its texts, and the run can have 0 bytes; raise memory.host by "),
        *rarely_cases(
            [
                (["run", "schedule=unifrm"], "unknown schedule `unifrm`; did you mean `uniform`"),
                (["run", "data.prefixes=many"], "`data.prefixes` must be a whole number, got 'many'"),
                (["run", "schedule.targets=[0.5"], "schedule.targets=[0.5"),
                (["run", "model=hf", "model.path=./nowhere"], "no such folder"),
                (["run", "data=text"], "`data=text` needs `data.path`"),
                (["run", "seed=-1"], "`seed` must not be negative, got -1"),
                (
                    ["run", "memory.host=much"],
                    "`memory.host` must be a number of bytes, or text such as 40GiB or 1.5GB, got",
                ),
                (["run", "hydra.run.dir=/proc/nowhere/run"], "/proc/nowhere"),
                (["run", "~seed"], "`~seed` removes a key, and `seed` must have a value; leave it out for its default"),
                (["run", "~memory.device"], "`~memory.device` removes a key, and `memory.device` must have a value;"),
                (["run", "~metric=kl"], "`~metric=kl` cannot take one of several options; write ~metric.kl, or ~metr"),
                (["run", "metric=[fdtn]"], "unknown metric `fdtn`; did you mean"),
                (["run", "compressor=magnitud"], "unknown compressor `magnitud`; did you mean `magnitude`"),
                (["run", "recovery=finetunes"], "unknown recovery `finetunes`; did you mean `finetune`"),
                (["run", "data.source=slef"], "`data.source` must be one of self, text, hf, got 'slef'"),
                (["run", "schedule=null"], "`schedule` must name an option, got null"),
                (["run", "compressor=[]"], "`compressor` must name at least one option, got []; known: gptq, "),
                (["run", "model=tny"], "unknown model `tny`; did you mean `tiny`"),
                (["run", "data.prefixs=3"], "unknown key `data.prefixs`; did you mean `data.prefixes`"),
                (["run", "+foo=1"], "unknown key `foo`"),
                (["run", "compressor.magnitude.scop=row"], "unknown key `compressor.magnitude.scop`; did you mean"),
                (["run", "--experimental-rerun", "x.pickle"], "--experimental-rerun is not supported"),
                (["run", "model=hf"], "`model.path`"),
                (["run", "data=text", "data.path=nowhere.txt"], "cannot read text"),
                (["run", "schedule=uniform", "schedule.targets=[0.5,0.2]"], "targets"),
                (["run", "sweep.batch=0"], "`sweep.batch` must be at least 1, got 0"),
                (["run", "memory.devise=1GB"], "unknown key `memory.devise`; did you mean `memory.device`"),
                (["run", "memory.device=1MiB"], "of memory, and can have 1.05 MB; raise memory.device by "),
                (["run", "schedule=fdt_allocation", "schedule.ranker=fdtn"], "unknown metric `fdtn`"),
                (["run", "components.include=[nothing]"], "components.include"),
                (["plugins", "--jsn"], "takes only --json"),
            ]
        ),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    small = SMALL if arguments[0] == "run" and "--" not in arguments[1] else []
    failed = call_command(tmp_path, arguments[0], *small, *arguments[1:])
    assert failed.returncode == 1, failed.stderr
    lines = failed.stderr.strip().splitlines()
    assert len(lines) == 1, failed.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert not list(tmp_path.rglob("model.safetensors"))


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    failed = call_command(tmp_path, "run", "hydra.run.dir=file/run", *SMALL)
    assert failed.returncode == 1
    assert len(failed.stderr.strip().splitlines()) == 1


GROUPS = [
    (folder.name, option.stem)
    for folder in sorted(CONF.iterdir())
    if folder.is_dir() and folder.name not in ("hydra", "__pycache__")
    for option in sorted(folder.glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "option"), GROUPS)
def test_every_option_composes(group: str, option: str) -> None:
    needed = {
        "text": [f"data.path={Path(__file__)}"],
        "hf": ["data.name=texts"] if group == "data" else ["model.path=a/b"],
    }
    check_overrides_of(f"{group}={option}", *needed.get(option, []))


def test_every_plugin_composes_and_is_built_with_its_options() -> None:
    """A run has one schedule, and any number of metrics and compressors."""
    plugins = installed()
    several = [f"{registry.word}=[{','.join(registry)}]" for registry in (plugins.metrics, plugins.compressors)]
    store_schemas(plugins)
    for name in plugins.schedules:
        with open_hydra():
            build_settings(compose([f"schedule={name}", *several]))  # not every schedule takes several compressors


def test_values_of_a_sweep_are_each_checked() -> None:
    with pytest.raises(ConfigError, match="unknown schedule `unifrm`"):
        check_overrides_of("schedule=uniform,unifrm")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.prefixes=abc", "`data.prefixes` must be a whole number, got 'abc'; correct it or leave it out"),
        ("data.prefixes=4,abc", "`data.prefixes` must be a whole number, got 'abc'; correct it or leave it out"),
        ("seed=1.5", "`seed` must be a whole number, got 1.5; correct it or leave it out"),
        ("sweep.batch=[1]", "`sweep.batch` must be a whole number or null, got [1]; correct it or leave it out"),
        (
            "sweep.mode=fast",
            "`sweep.mode` must be one of exact, plain, approximate, got 'fast'; correct it or leave it out",
        ),
        (
            "data.calibration=margin",
            "`data.calibration` must be one of tokens, margins, got 'margin'; correct it or leave it out",
        ),
        ("export.verify=maybe", "`export.verify` must be true or false, got 'maybe'; correct it or leave it out"),
        ("schedule.size=[1]", "`schedule.size` must be a text or null, got [1]; correct it or leave it out"),
        (
            "schedule.targets=much",
            "`schedule.targets` must be a list of numbers, such as [a,b], got 'much'; correct it or leave it out",
        ),
        (
            "schedule.targets=[a]",
            "`schedule.targets` must be a list of numbers, such as [a,b], got ['a']; correct it or leave it out",
        ),
        ("metric.fdtm=3", "`metric.fdtm` has options of its own, got 3; set one of them, metric.fdtm.OPTION=VALUE"),
        (
            "schedule.targets=[[0.5]]",
            "`schedule.targets` must be a list of numbers, such as [a,b], got [[0.5]]; correct it or leave it out",
        ),
        (
            "schedule.targets=[{a:1}]",
            "`schedule.targets` must be a list of numbers, such as [a,b], got [{'a': 1}]; correct it or leave it out",
        ),
        (
            "components.include=[[mlp]]",
            "`components.include` must be a list of texts, such as [a,b], got [['mlp']]; correct it or leave it out",
        ),
        (
            "resume.accept=[[all]]",
            "`resume.accept` must be a list of texts, such as [a,b], got [['all']]; correct it or leave it out",
        ),
        (r"seed='\${x}'", r"`seed` must be a whole number, got '\\${x}'; correct it or leave it out"),
        (r"seed='${seed}'", "`seed` must be a whole number, got '${seed}'; correct it or leave it out"),
        (
            r"data.seed='${data.path}'",
            "`data.seed` must be a whole number, got '${data.path}'; correct it or leave it out",
        ),
        ("seed=null", "`seed` must be a whole number, got null; correct it or leave it out"),
        ("export.verify=[true]", "`export.verify` must be true or false, got [True]; correct it or leave it out"),
        (
            "memory.host=inf",
            "`memory.host` must be a whole number or a text or null, got inf; correct it or leave it out",
        ),
        ("hydra.run.dir=[a]", "`hydra.run.dir` must be a text, got ['a']; correct it or leave it out"),
        ("hydra.sweep.subdir=null", "`hydra.sweep.subdir` must be a text, got null; correct it or leave it out"),
        ("hydra.run=null", "`hydra.run` must be a group of options, got null; correct it or leave it out"),
        ("model=3", "unknown model `3`; known: hf, tiny"),
    ],
)
def test_a_value_that_a_key_cannot_hold_is_one_line(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        check_overrides_of(override)


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ("schedule.targets=0.3", "schedule.targets=[0.3]"),
        ("schedule.targets=[]", "schedule.targets=[]"),
        ("schedule.targets=0.3,0.5", "schedule.targets=[0.3],[0.5]"),
        ("components.include=mlp", "components.include=[mlp]"),
        ("schedule.targets=[0.2,0.3]", "schedule.targets=[0.2,0.3]"),
    ],
)
def test_one_value_in_place_of_a_list_is_a_list_of_one(given: str, read: str) -> None:
    plugins = installed()
    store_schemas(plugins)
    with open_hydra():
        lines, config = complete_overrides([given], plugins)
    assert lines == [read]
    assert OmegaConf.is_list(OmegaConf.select(config, read.partition("=")[0]))


def test_experiments_start_with_the_command_that_runs_them() -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        first, second = path.read_text().splitlines()[:2]
        assert first == "# @package _global_"
        assert second == f"# compressor run experiment={path.stem}"


TINY = {path.stem: path for path in (CONF / "experiment").glob("tiny_*.yaml")}


@pytest.mark.parametrize("name", rarely(sorted(TINY)))
def test_tiny_experiments_run(tmp_path: Path, name: str) -> None:
    short = ["recovery.steps=4", "recovery.released=1", "recovery.batch=2", "recovery.windows=8", "recovery.tokens=9"]
    trains = "recovery:" in TINY[name].read_text(encoding="utf-8")
    options = [f"experiment={name}", "hydra.run.dir=out", *SMALL, *(short if trains else ())]
    done = call_command(tmp_path, "run", *options)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out" / "report.json").read_text())["status"] == "done"


LARGE = sorted(path.stem for path in (CONF / "experiment").glob("llama2_*.yaml"))
SHORT_TRAINING = (
    "recovery.steps=4", "recovery.batch=2", "recovery.windows=8", "recovery.tokens=9", "recovery.path=text.txt",
    "recovery.dataset=null",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_experiments_run_on_a_small_model(name: str, tmp_path: Path) -> None:
    """The paper's recipes, all eight rounds, with a small checkpoint in place of the large one."""
    save_checkpoint("llama", tmp_path / "base", with_tokenizer=True)
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog " * 200)
    small = [
        "model.path=base", "model.dtype=float32", "data=text", "data.path=text.txt", "data.prefixes=4",
        "data.prefix_tokens=6", "data.continuation_tokens=8", "tracking=none", "hydra.run.dir=out",
        "export.verify=false", *(SHORT_TRAINING if name.endswith("retrain") else ()),
    ]  # fmt: skip
    done = call_command(tmp_path, "run", f"experiment={name}", *small)
    assert done.returncode == 0, done.stderr
    rounds = json.loads((tmp_path / "out" / "report.json").read_text())["rounds"]
    assert [r["amount"] for r in rounds] == pytest.approx([0.20, 0.35, 0.45, 0.55, 0.60, 0.65, 0.70, 0.75], abs=1e-3)


@pytest.mark.slow
def test_jobs_of_a_multirun_share_a_group_in_wandb(tmp_path: Path) -> None:
    """The name of a job is what differs; the line that uploads it names a folder that is there."""
    (tmp_path / "home").mkdir()
    tracked = ["tracking=wandb", "tracking.mode=offline", "schedule=uniform", "hydra.sweep.dir=sweep/one"]
    done = call_command(
        tmp_path, "run", "-m", "schedule.targets=[0.2],[0.3]", *SMALL, *tracked, HOME=str(tmp_path / "home")
    )
    assert (done.returncode, done.stderr) == (0, "")
    (runs, commands) = [], [line for line in done.stdout.splitlines() if "wandb sync" in line]
    for job in ("0", "1"):
        records = read_log(tmp_path / "sweep" / "one" / job)
        runs += [record.run for record in records if record.WhichOneof("record_type") == "run"]
        (log,) = (tmp_path / "sweep" / "one" / job).glob("wandb/offline-run-*")
        assert commands[int(job)] == f"W&B: the run is stored offline; upload it with: wandb sync {log.resolve()}"
    assert [run.display_name for run in runs] == ["schedule.targets=[0.2]", "schedule.targets=[0.3]"]
    assert [run.run_group for run in runs] == ["sweep/one"] * 2
    assert len(commands) == 2


def test_a_working_directory_that_was_removed(tmp_path: Path) -> None:
    code = f"import os; os.rmdir(os.getcwd()); {MAIN}"
    (tmp_path / "gone").mkdir()
    done = run_project([sys.executable, "-c", code, "plugins"], tmp_path / "gone")
    assert (done.returncode, done.stdout) == (1, "")
    reason = "No such file or directory"
    assert done.stderr == f"error: the working directory cannot be read: {reason}; change to another one\n"
