"""What must not leave a run (secrets of the environment), and what must not get through it (control characters)."""

import io
import json
import logging
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from rich.table import Table

from compressor.commands.terminal import Clean, CleanFormatter, Terminal
from tests.support.command_line import call_command
from tests.support.families import save_checkpoint
from tests.support.slow import rarely

FEW = [
    "data.prefixes=2", "data.prefix_tokens=4", "data.continuation_tokens=4", "metric=fdtm", "schedule=uniform",
    "components.include=[layers.0.self_attn]", "export.verify=false",
]  # fmt: skip
SECRETS = {
    "WANDB_API_KEY": "5ec2e7" * 6 + "abcd",
    "HF_TOKEN": "hf_canaryOfTheHub",
    "HUGGING_FACE_HUB_TOKEN": "hf_anotherCanary",
    "AWS_SECRET_ACCESS_KEY": "canary/of+AWS",
    "OPENAI_API_KEY": "sk-canaryOfOpenAI",
    "MY_PASSWORD": "canary-of-anybody",
}
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e<script>alert(1)</script>"
"""Clears a terminal, sets its title, turns the direction of text, and opens a script."""


def find_secrets(folder: Path, said: str) -> list[str]:
    """Where a secret stands, byte for byte: in the output, or in a file or its name."""
    found = [f"output: {name}" for name, secret in SECRETS.items() if secret in said]
    for path in folder.rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        found += [
            f"{path}: {name}" for name, secret in SECRETS.items() if secret.encode() in content + str(path).encode()
        ]
    return found


@pytest.mark.parametrize(
    "line",
    [
        ["run", *FEW, "tracking.mode=offline", "hydra.verbose=true"],
        *rarely([["forecast", *FEW[:3], FEW[5]]]),
        *rarely([["run", *FEW, "tracking.mode=offline", "components.include=[nothing]"]]),
    ],
    ids=["a run with W&B", "a forecast", "a failed run"],
)
def test_no_variable_of_the_environment_reaches_a_file_or_the_output(line: list[str], tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = SECRETS | {"HOME": str(home), "COMPRESSOR_CACHE": str(tmp_path / "cache"), "OMP_NUM_THREADS": "1"}
    done = call_command(tmp_path, *line, "hydra.run.dir=out", **environment)
    assert done.returncode == ("components.include=[nothing]" in line), done.stderr
    assert len(list((tmp_path / "out").rglob("*"))) > 4
    assert not find_secrets(tmp_path, done.stdout + done.stderr)


def test_a_secret_that_an_interpolation_names_is_recorded_as_the_configuration_says(tmp_path: Path) -> None:
    """The one way in: the user's own configuration asks for it. The search above finds such a one."""
    done = call_command(
        tmp_path, "run", *FEW, "tracking=none", "tracking.project=${oc.env:MY_PASSWORD}", "hydra.run.dir=out", **SECRETS
    )
    assert done.returncode == 0 and find_secrets(tmp_path, done.stdout + done.stderr)


@pytest.mark.parametrize(
    "line", [["run", "wandb.api_key=SECRET"], ["run", "model.token=SECRET"], ["run", "+hf_token=SECRET"]]
)
def test_a_setting_that_looks_like_a_secret_is_refused_and_leaves_nothing(line: list[str], tmp_path: Path) -> None:
    """No setting holds a secret, so that none can be recorded; an error shows the key, and not its value."""
    done = call_command(tmp_path, *(word.replace("SECRET", SECRETS["HF_TOKEN"]) for word in line))
    assert done.returncode == 1 and "unknown key" in done.stderr
    assert not find_secrets(tmp_path, done.stdout + done.stderr) and not list(tmp_path.iterdir())


def assert_harmless(text: str) -> None:
    assert not set(text) & set("\x1b\x07\u202e"), text


def test_hostile_names_reach_neither_terminal_nor_page(tmp_path: Path) -> None:
    """As the name of a model's folder (where a slash cannot be), in all output, in the log and on the page."""
    name = HOSTILE.replace("/", "")
    save_checkpoint("llama", tmp_path / name, with_tokenizer=True)
    path = json.dumps(name, ensure_ascii=False).replace("\\u001b", "\x1b").replace("\\u0007", "\x07")
    given = ["model=hf", f"model.path={path}", "tracking=none", "hydra.run.dir=out"]
    for command in (["run", *FEW], ["forecast", *FEW[:3], FEW[5]]):
        done = call_command(tmp_path, *command, *given)
        assert done.returncode == 0, done.stderr
        assert_harmless(done.stdout + done.stderr)
        (page,) = (tmp_path / "out").glob("*.html")
        assert "<script" not in page.read_text() and "\x1b" not in page.read_text()
        assert_harmless((tmp_path / "out" / "compressor.log").read_text() if list(tmp_path.glob("out/*.log")) else "")
        shutil.rmtree(tmp_path / "out")
    missing = call_command(tmp_path, "run", "model=hf", f"model.path={path[:-1]}2{path[-1]}")
    assert missing.returncode == 1
    assert_harmless(missing.stdout + missing.stderr)


def test_tables_and_lines_of_a_log_show_control_characters_as_escapes() -> None:
    table = Table()
    table.add_column(HOSTILE)
    table.add_row(HOSTILE)
    console = Console(file=io.StringIO(), width=200)
    console.print(Clean(table))
    assert isinstance(console.file, io.StringIO)
    assert_harmless(console.file.getvalue())
    assert "\\x1b[2J" in console.file.getvalue()
    line = logging.LogRecord("a", logging.WARNING, "b", 1, "%s", (HOSTILE,), None)
    assert_harmless(CleanFormatter("%(message)s").format(line))


def test_a_message_of_a_plugin_is_shown_on_one_line_with_escapes(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().fail(f"plugin failed: {HOSTILE}\nsecond line")
    said = capsys.readouterr().err
    assert_harmless(said)
    assert said.count("\n") == 1 and "\\x1b[2J" in said and said.endswith("second line\n")
