"""Trackers: Weights & Biases, or none. This is the only module that imports wandb.

W&B gets a point for each round, and the result. Scored trials are not sent: they are lines of scores.jsonl. Whatever
goes wrong in W&B, the run continues: it is never stopped, never waits for an answer, and for W&B only a limited time.
"""

import http.client
import logging
import netrc
import os
import shlex
import shutil
import ssl
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from compressor.artifacts.disk_space import find_room
from compressor.artifacts.files import to_strict
from compressor.artifacts.plan_file import ROWS_FILE
from compressor.artifacts.run_record import ComponentRecord, Record, RoundRecord, TrainingPoint
from compressor.settings import TrackingMode, TrackingSettings
from compressor.tracking.flat_record import flatten_component, flatten_point, flatten_record, flatten_round
from compressor.tracking.run_label import RunLabel

log = logging.getLogger(__name__)

INIT_SECONDS = 15.0
"""How long wandb may try to go online; after that, the run is tracked offline."""
PROBE_SECONDS = 5.0
"""How long its server may take to answer at all, before wandb tries."""
FINISH_SECONDS = 60.0
"""How long the last upload may take; the rest stays on disk, for `wandb sync`."""
ROOM = 1 << 20
"""Bytes that W&B's records of a run take; approximate. On a full disk they would be lost without a word."""
REPORT_FILES = ("report.html", "report.json")
PLAN_FILES = ("plan.json", ROWS_FILE)


_unreachable: dict[str, str] = {}
"""Address of a server that this process could not reach -> the reason. Jobs that follow do not wait for it again."""


class Tracker:
    """Logs a run to a place outside of its folder. This one logs nothing.

    `sync_command` is the command that uploads the run, if it was tracked offline.
    """

    sync_command: str | None = None

    def log_round(self, index: int, round_record: RoundRecord) -> None:
        """Log a round that was kept; the first has the `index` 1."""

    def log_training(self, point: TrainingPoint) -> None:
        """Log a point of the training after a round."""

    def log_final(self, record: Record, draw_heat_map: Callable[[], str], folder: Path) -> None:
        """Log a complete run: its record, the heat map of its components, and the plan and the report in `folder`.

        `draw_heat_map` gives an SVG; it is called only if that is logged.
        """


class WandbTracker(Tracker):
    """Logs to a W&B run. The first failure is logged once; after that nothing more is sent."""

    def __init__(self, run: Any) -> None:  # noqa: ANN401 - wandb is untyped here
        self.run = run
        self.works = True
        self.attempt(self.find_sync_command)
        self.attempt(lambda: run.define_metric("round/*", step_metric="round/amount"))

    def log_round(self, index: int, round_record: RoundRecord) -> None:
        self.attempt(lambda: self.run.log(flatten_round(index, round_record)))

    def log_training(self, point: TrainingPoint) -> None:
        self.attempt(lambda: self.run.log(flatten_point(point)))

    def log_final(self, record: Record, draw_heat_map: Callable[[], str], folder: Path) -> None:
        self.attempt(lambda: self.run.summary.update(flatten_record(record)))
        self.attempt(lambda: self.log_media(record.components, draw_heat_map()))
        # The plan is not copied: it may be large, and `wandb sync` reads it in the run's folder. The report is copied:
        # its page may be built anew, and `wandb sync` refuses a file that has changed.
        self.attempt(lambda: self.log_files("plan", folder, PLAN_FILES, copies=False))
        self.attempt(lambda: self.log_files("report", folder, REPORT_FILES, copies=True))

    def log_media(self, components: Mapping[str, ComponentRecord], heat_map_svg: str) -> None:
        """Log the heat map, as HTML because W&B shows no SVG images, and the table of components."""
        import wandb

        media = {"heat_map": wandb.Html(heat_map_svg, inject=False, data_is_not_path=True)}
        rows = [flatten_component(name, component) for name, component in components.items()]
        if rows:
            media["components"] = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
        self.run.log(media)

    def log_files(self, kind: str, folder: Path, names: Sequence[str], copies: bool) -> None:
        """Log those of the files that are in the folder as one artifact."""
        import wandb

        artifact = wandb.Artifact(f"{kind}-{self.run.id}", type=kind)
        policy: Literal["mutable", "immutable"] = "mutable" if copies else "immutable"
        for path in (folder / name for name in names):
            if path.exists():
                artifact.add_file(str(path.resolve()), name=path.name, skip_cache=True, policy=policy)
        self.run.log_artifact(artifact)

    def find_sync_command(self) -> None:
        """Set `sync_command` for a run that is offline."""
        if self.run.offline:
            self.sync_command = f"wandb sync {shlex.quote(str(self.run.settings.sync_dir))}"

    def attempt(self, action: Callable[[], object], always: bool = False) -> None:
        """Do `action`, unless W&B has failed before. The first failure is logged; it ends the tracking, not the run."""
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
def open_tracker(
    settings: TrackingSettings, folder: Path, config: Mapping[str, Any], label: RunLabel, run_id: str | None = None
) -> Iterator[Tracker]:
    """A tracker for one run, which is closed at the end, also where the run fails.

    A run that is resumed goes on under its `run_id` in W&B. W&B's runs are written to $WANDB_DIR/wandb, or
    `folder`/wandb where that is not set, and all its other files to `folder`/wandb. The environment of the
    process is restored.
    """
    if settings.backend == "none" or settings.mode is TrackingMode.disabled:
        yield Tracker()
        return
    with _isolate_wandb(folder) as owned:
        run = _start_run(settings, folder, config, label, run_id, owned)
        if run is None:
            yield Tracker()
            return
        tracker, exit_code = WandbTracker(run), 1
        try:
            yield tracker
            exit_code = 0
        finally:
            tracker.close(exit_code)


@contextmanager
def _isolate_wandb(folder: Path) -> Iterator[bool]:
    """Keep W&B's files and its service process separate from others; gives whether the service is ours to end."""
    defaults = {
        "WANDB_DATA_DIR": str(folder.resolve() / "wandb"),
        "WANDB_CACHE_DIR": str(folder.resolve() / "wandb" / "cache"),
        "WANDB_ERROR_REPORTING": "false",
    }
    added = {key: value for key, value in defaults.items() if key not in os.environ}
    owned = "WANDB_SERVICE" not in os.environ
    # wandb replaces both when its service starts, and does not restore them.
    leave, excepthook = sys.exit, sys.excepthook
    # wandb's own messages are in its debug.log; the log of the run should not repeat them.
    chatter = logging.getLogger("wandb")
    propagate, chatter.propagate = chatter.propagate, False
    # On a full disk, each line of wandb's own log would be a traceback on stderr.
    raises, logging.raiseExceptions = logging.raiseExceptions, False
    os.environ.update(added)
    try:
        yield owned
    finally:
        if owned:
            _end_service()
            sys.exit, sys.excepthook = leave, excepthook
        chatter.propagate = propagate
        logging.raiseExceptions = raises
        for key in added:
            os.environ.pop(key, None)


def _end_service() -> None:
    try:
        import wandb

        wandb.teardown()
    except (Exception, SystemExit) as error:  # teardown calls sys.exit where its service failed
        log.warning("W&B did not end cleanly (%s)", _first_line(error))


def _start_run(
    settings: TrackingSettings,
    folder: Path,
    config: Mapping[str, Any],
    label: RunLabel,
    run_id: str | None,
    owned: bool,
) -> Any:  # noqa: ANN401
    """A W&B run: online if that is allowed and possible, else offline; None if tracking is off or has failed."""
    try:
        import wandb

        wanted = wandb.Settings(
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS - PROBE_SECONDS,
            finish_timeout=FINISH_SECONDS,
            disable_git=True,
            symlink=False,
        )
        session = wandb.setup(wanted if owned else None).settings
        mode = _choose_mode(settings.mode, session, wandb.Settings().base_url)

        if mode is TrackingMode.disabled:
            return None
        place = Path(os.environ.get("WANDB_DIR") or folder)
        begin = partial(
            wandb.init,
            project=settings.project,
            dir=str(place),
            name=label.name,
            group=label.group,
            config=to_strict(config),
            id=run_id,
            resume="allow" if run_id else None,
            reinit="create_new",
            settings=wanted,
        )
        place.mkdir(parents=True, exist_ok=True)  # wandb would take a temporary folder instead
        if find_room(place, ROOM) < ROOM:
            log.warning("W&B could not start: the disk of %s is full; the run goes on without it", place)
            return None
        if mode is TrackingMode.online:
            return _begin_online(begin, place, session.base_url)
        return begin(mode=mode.value)
    except Exception as error:
        log.warning("W&B could not start (%s); the run goes on without it", _first_line(error))
        return None


def _begin_online(begin: Callable[..., Any], place: Path, url: str) -> Any:  # noqa: ANN401 - wandb is untyped here
    if url not in _unreachable and (reason := _find_obstacle(url)) is not None:
        _unreachable[url] = reason
    if url not in _unreachable:
        earlier = set((place / "wandb").glob("run-*"))
        try:
            return begin(mode="online")
        except Exception as error:
            _unreachable[url] = _first_line(error)
        # The failed attempt left an empty run, which `wandb sync` would upload too.
        for attempt in set((place / "wandb").glob("run-*")) - earlier:
            shutil.rmtree(attempt, ignore_errors=True)
    log.warning(
        "W&B cannot be reached (%s); tracking offline, send it later with: wandb sync %s",
        _unreachable[url],
        shlex.quote(str(place / "wandb")) + "/offline-run-*",
    )
    return begin(mode="offline")


def _find_obstacle(url: str) -> str | None:
    """Why no server answers at this address; None if one does. wandb itself would try much longer than it is told."""
    found = [f"no answer within {PROBE_SECONDS:g} s"]

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
        except urllib.error.HTTPError as error:  # an answer
            error.close()
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ssl.SSLError):  # wandb may know other certificates
                found[0] = _first_line(error.reason) if isinstance(error.reason, OSError) else str(error.reason)
                return
        except (OSError, http.client.HTTPException, ValueError) as error:
            found[0] = _first_line(error)
            return
        found.clear()

    thread = threading.Thread(target=ask, name="wandb-probe", daemon=True)  # looking up a name has no time limit
    thread.start()
    thread.join(PROBE_SECONDS)
    return found[0] if found else None


def _choose_mode(mode: TrackingMode, session: Any, default_url: str) -> TrackingMode:  # noqa: ANN401 - wandb is untyped here
    """Online, offline or disabled; `session` are wandb's settings: they include WANDB_MODE and `wandb offline`."""
    if mode is TrackingMode.auto:
        named = {"offline": TrackingMode.offline, "dryrun": TrackingMode.offline, "disabled": TrackingMode.disabled}
        mode = named.get(session.mode, mode)
    if mode in (TrackingMode.offline, TrackingMode.disabled):
        return mode
    if _is_logged_in(session, default_url):
        return TrackingMode.online
    # wandb would ask for a key now, and a run must not wait for a person.
    level = logging.WARNING if mode is TrackingMode.online else logging.INFO
    log.log(level, "not logged in to W&B at %s; tracking offline, `wandb login` goes online", session.base_url)
    return TrackingMode.offline


def _is_logged_in(session: Any, default_url: str) -> bool:  # noqa: ANN401 - wandb is untyped here
    """Does wandb have credentials for its server?"""
    if session.api_key or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    candidates = [os.environ.get("NETRC", ""), "~/.netrc", "~/_netrc"]
    path = next((path for text in candidates if text and (path := Path(text).expanduser()).is_file()), None)
    # The address of wandb's default server has changed; the key that is stored for the old address is still valid.
    hosts = [urlsplit(session.base_url).netloc] + (["api.wandb.ai"] if session.base_url == default_url else [])
    try:
        entries = netrc.netrc(path) if path else None
    except (OSError, netrc.NetrcParseError):
        return False
    return entries is not None and any(entries.authenticators(host) for host in hosts)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0] or type(error).__name__
