"""Shared by all tests: nothing leaves the test's own folders, and nothing reaches for a network."""

import gc
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.register_assert_rewrite("tests.support")

from compressor.contracts.guard import OWN_PACKAGES  # noqa: E402
from compressor.export import verification  # noqa: E402
from tests.support.browser import Browser  # noqa: E402 - its assertions are rewritten too
from tests.support.slow import rarely  # noqa: E402
from tests.support.warm_processes import make_subprocess  # noqa: E402

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell starts what it puts into the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup starts what it is given
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

OWN_PACKAGES.add("compressor_plugins")  # as in every process that has loaded the plugins, whichever test is the first

SHARED_MODELS = Path(__file__).parents[2] / "shared" / "models"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-browser", action="store_true", help="skip the tests that open pages in Chromium")
    parser.addoption("--slow-shard", metavar="I/N", help="of the slow tests only every N-th, beginning with number I")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the slow tests of other shards out; a shard has slow tests of every module."""
    if (shard := config.getoption("--slow-shard")) is None:
        return
    first, step = map(int, shard.split("/"))
    slow = [item for item in items if item.get_closest_marker("slow")]
    left_out = {*slow} - {*slow[first % step :: step]}
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]


def pytest_collection_finish() -> None:
    """Modules and tests stay to the end, so no later collection of garbage has to look through them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Tiny matrices gain nothing from threads, and lose much on a busy machine."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def isolated_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COMPRESSOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("COMPRESSOR_CACHE_BYTES", "0")  # or tests would see what others have estimated
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("COLUMNS", "160")
        yield


@pytest.fixture(autouse=True, scope="session")
def warm_reloads() -> Iterator[None]:
    """A saved model is reloaded by a process that has imported transformers; `fresh_reloads` begins with nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "subprocess", make_subprocess())
        yield


@pytest.fixture(scope="module")
def fresh_reloads(warm_reloads: None) -> Iterator[None]:
    """A saved model is reloaded by a fresh interpreter, as it is for users; some seconds slower."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(verification, "subprocess", subprocess)
        yield


@pytest.fixture(scope="session")
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if request.config.getoption("--no-browser"):
        pytest.skip("--no-browser was given")
    executable = shutil.which("chromium")
    if executable is None:
        pytest.fail("no chromium on PATH to open the pages with; install it, or run pytest with --no-browser")
    found = Browser(executable, tmp_path_factory.mktemp("browser"))
    yield found
    found.close()


@pytest.fixture(params=["stories260K", *rarely(["tinystories-656k", "tinystories-2.8M"])])
def trained_folder(request: pytest.FixtureRequest) -> Path:
    folder = SHARED_MODELS / request.param
    if not folder.is_dir():
        pytest.skip(f"the trained model {request.param} is not beside the checkout in ../shared/models")
    return folder
