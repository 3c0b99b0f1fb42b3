"""Weights & Biases, or nothing: the only file that knows wandb. A tracker never stops, prompts or holds up a run.

Each scored trial is a line of scores.jsonl; W&B gets a point per round and the result.
"""

import logging
import netrc
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from compressor.artifacts.files import to_strict
from compressor.artifacts.plan_file import ROWS_FILE
from compressor.artifacts.run_record import ComponentRecord, Record, RoundRecord
from compressor.settings import TrackingMode, TrackingSettings
from compressor.tracking.flat_record import flatten_component, flatten_record, flatten_round

log = logging.getLogger(__name__)

INIT_SECONDS = 15.0
"""How long going online may take before the run is tracked offline."""
FINISH_SECONDS = 60.0
"""How long the last upload may take; what is left stays on disk for `wandb sync`."""


class Tracker(Protocol):
    """Where a run is logged besides its folder."""

    def log_round(self, index: int, round_record: RoundRecord) -> None:
        """A round was kept; `index` counts from 1."""
        ...

    def log_final(self, record: Record, heat_map_svg: str, plan_path: Path) -> None:
        """The run is complete: its record, the picture of its components, and the plan on disk, rows beside it."""
        ...


class NullTracker:
    """Logs nowhere."""

    def log_round(self, index: int, round_record: RoundRecord) -> None:
        return None

    def log_final(self, record: Record, heat_map_svg: str, plan_path: Path) -> None:
        return None


class WandbTracker:
    """Logs to a W&B run; after the first failure it says so once and is silent."""

    def __init__(self, run: Any) -> None:  # noqa: ANN401 - wandb is untyped here
        self.run = run
        self.works = True
        self.attempt(lambda: run.define_metric("round/*", step_metric="round/amount"))

    def log_round(self, index: int, round_record: RoundRecord) -> None:
        self.attempt(lambda: self.run.log(flatten_round(index, round_record)))

    def log_final(self, record: Record, heat_map_svg: str, plan_path: Path) -> None:
        self.attempt(lambda: self.run.summary.update(flatten_record(record)))
        self.attempt(lambda: self.log_media(record.components, heat_map_svg))
        self.attempt(lambda: self.log_plan(plan_path))

    def log_media(self, components: Mapping[str, ComponentRecord], heat_map_svg: str) -> None:
        """The heat map, as HTML because W&B has no SVG image, and the table of components."""
        import wandb

        media = {"heat_map": wandb.Html(heat_map_svg, inject=False, data_is_not_path=True)}
        rows = [flatten_component(name, component) for name, component in components.items()]
        if rows:
            media["components"] = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self.run.log(media)

    def log_plan(self, plan_path: Path) -> None:
        import wandb

        artifact = wandb.Artifact(f"plan-{self.run.id}", type="plan")
        # Neither copied nor cached: the run's folder keeps the plan, and a later `wandb sync` reads it from there.
        for path in (plan_path, plan_path.with_name(ROWS_FILE)):
            if path.exists():
                artifact.add_file(str(path.resolve()), name=path.name, skip_cache=True, policy="immutable")
        self.run.log_artifact(artifact)

    def attempt(self, action: Callable[[], object], always: bool = False) -> None:
        """Do `action` while W&B works; a failure is logged once, and ends the tracking, not the run."""
        if not (self.works or always):
            return
        try:
            action()
        except Exception as error:
            if self.works:
                log.warning("W&B failed (%s); the run goes on without it", _first_line(error))
            self.works = False

    def close(self, exit_code: int) -> None:
        self.attempt(lambda: self.run.finish(exit_code=exit_code), always=True)


@contextmanager
def open_tracker(settings: TrackingSettings, folder: Path, config: Mapping[str, Any], name: str) -> Iterator[Tracker]:
    """A tracker for one run, closed and cleaned up on the way out, however that is.

    All of W&B's files go under `folder`/wandb. The environment of the process is afterwards as it was.
    """
    if settings.backend == "none" or settings.mode is TrackingMode.disabled:
        yield NullTracker()
        return
    with _isolate_wandb(folder) as owned:
        run = _start_run(settings, folder, config, name, owned)
        if run is None:
            yield NullTracker()
            return
        tracker, exit_code = WandbTracker(run), 1
        try:
            yield tracker
            exit_code = 0
        finally:
            tracker.close(exit_code)


@contextmanager
def _isolate_wandb(folder: Path) -> Iterator[bool]:
    """Keep W&B's files and its service to this run; says whether the service is ours to end."""
    defaults = {
        "WANDB_DATA_DIR": str(folder.resolve() / "wandb"),
        "WANDB_CACHE_DIR": str(folder.resolve() / "wandb" / "cache"),
        "WANDB_ERROR_REPORTING": "false",
    }
    added = {key: value for key, value in defaults.items() if key not in os.environ}
    owned = "WANDB_SERVICE" not in os.environ
    # wandb replaces both when its service starts, and leaves them so.
    leave, excepthook = sys.exit, sys.excepthook
    # What wandb does step by step is in its debug.log; in the run's own log it would be noise.
    chatter = logging.getLogger("wandb")
    propagate, chatter.propagate = chatter.propagate, False
    os.environ.update(added)
    try:
        yield owned
    finally:
        if owned:
            _end_service()
            sys.exit, sys.excepthook = leave, excepthook
        chatter.propagate = propagate
        for key in added:
            os.environ.pop(key, None)


def _end_service() -> None:
    try:
        import wandb

        wandb.teardown()
    except (Exception, SystemExit) as error:  # teardown calls sys.exit where its service failed
        log.warning("W&B did not end cleanly (%s)", _first_line(error))


def _start_run(settings: TrackingSettings, folder: Path, config: Mapping[str, Any], name: str, owned: bool) -> Any:  # noqa: ANN401
    """A W&B run, online if it may and can, else offline; None where tracking is off or failed."""
    try:
        import wandb

        wanted = wandb.Settings(**_make_settings())
        session = wandb.setup(wanted if owned else None).settings
        mode = _choose_mode(settings.mode, session, wandb.Settings().base_url)

        initialize: Callable[..., Any] = wandb.init
        begin = partial(
            initialize,
            project=settings.project,
            dir=str(folder),
            name=name,
            config=to_strict(config),
            reinit="create_new",
            settings=wanted,
        )
        if mode is TrackingMode.disabled:
            return None
        return _begin_online(begin, folder) if mode is TrackingMode.online else begin(mode=mode.value)
    except Exception as error:
        log.warning("W&B could not start (%s); the run goes on without it", _first_line(error))
        return None


def _make_settings() -> dict[str, Any]:
    return {
        "silent": True,
        "console": "off",
        "init_timeout": INIT_SECONDS,
        "finish_timeout": FINISH_SECONDS,
        "disable_git": True,
        "symlink": False,
    }


def _begin_online(begin: Callable[..., Any], folder: Path) -> Any:  # noqa: ANN401 - wandb is untyped here
    earlier = set((folder / "wandb").glob("run-*"))
    try:
        return begin(mode="online")
    except Exception as error:
        log.warning(
            "W&B cannot be reached (%s); tracking offline, send it later with: wandb sync %s",
            _first_line(error),
            folder / "wandb" / "offline-run-*",
        )
        # The attempt left an empty run, which `wandb sync` would send as well.
        for attempt in set((folder / "wandb").glob("run-*")) - earlier:
            shutil.rmtree(attempt, ignore_errors=True)
        return begin(mode="offline")


def _choose_mode(mode: TrackingMode, session: Any, default_url: str) -> TrackingMode:  # noqa: ANN401 - wandb is untyped here
    """What `mode` comes to; `session` are wandb's own settings, which hold WANDB_MODE and what `wandb offline` set."""
    if mode is TrackingMode.auto:
        named = {"offline": TrackingMode.offline, "dryrun": TrackingMode.offline, "disabled": TrackingMode.disabled}
        mode = named.get(session.mode, TrackingMode.auto)
    if mode in (TrackingMode.offline, TrackingMode.disabled):
        return mode
    if _is_logged_in(session, default_url):
        return TrackingMode.online
    # Going online now would make wandb ask for a key, and a run must not wait for a person.
    level = logging.WARNING if mode is TrackingMode.online else logging.INFO
    log.log(level, "not logged in to W&B at %s; tracking offline, `wandb login` goes online", session.base_url)
    return TrackingMode.offline


def _is_logged_in(session: Any, default_url: str) -> bool:  # noqa: ANN401 - wandb is untyped here
    """Has wandb credentials for its server?"""
    if session.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    candidates = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    path = next((path for text in candidates if text and (path := Path(text).expanduser()).is_file()), None)
    # wandb's default server has changed its address, and still takes the key of the old one.
    hosts = [urlsplit(session.base_url).netloc] + (["api.wandb.ai"] if session.base_url == default_url else [])
    try:
        entries = netrc.netrc(path) if path else None
    except (OSError, netrc.NetrcParseError):
        return False
    return entries is not None and any(entries.authenticators(host) for host in hosts)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
