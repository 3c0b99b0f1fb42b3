"""Checks of what plugins declare about themselves: names, units, directions, texts. Torch-free, and before any work.

Registered classes and objects made by hand are checked alike.
"""

from collections.abc import Mapping, Sequence
from typing import NoReturn

from compressor.contracts.compressor import Compressor, Storage
from compressor.contracts.guard import name_plugin, show
from compressor.contracts.metric import Metric, TextWindows
from compressor.contracts.recovery import Recovery, TrainingTexts
from compressor.contracts.schedule import Schedule
from compressor.contracts.types import Better, Reads
from compressor.errors import PluginError

LARGEST = 2**31 - 1
"""The largest number of steps, windows and the like that a run can count."""


def check_metric(metric: Metric) -> None:
    """Raise PluginError for a metric with a field of the wrong type, or a text that cannot be read."""
    require_kind(metric, "metric", Metric)
    require_type(metric, "name", str)
    require_type(metric, "reads", Reads)
    require_type(metric, "better", Better)
    for attribute in ("unit", "label"):
        require_type(metric, attribute, str)
        value: str = getattr(metric, attribute)
        if value != " ".join(value.split()):
            refuse(metric, attribute, value, "give one line of text without spaces around it")
    read_text(metric)


def read_text(metric: Metric) -> TextWindows | None:
    """The text of a metric; raises PluginError for one that cannot be read."""
    text = metric.text()
    if text is None:
        return None
    if not isinstance(text, TextWindows):
        refuse(metric, "text()", text, "give TextWindows, or None for the base's continuations")
    if text.path is not None and (not isinstance(text.path, str) or not text.path):
        refuse(metric, "text().path", text.path, "give the path of a file, or None for the text of the run")
    for attribute, least in (("window", 2), ("stride", 1), ("tokens", 2)):
        value = getattr(text, attribute)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
            refuse(metric, f"text().{attribute}", value, f"a whole number of at least {least} or None is needed")
    if text.stride is not None and text.window is not None and text.stride > text.window:
        refuse(metric, "text().stride", text.stride, f"it must be at most the window of {text.window}")
    return text


def check_compressor(compressor: Compressor) -> None:
    """Raise PluginError for a compressor with a field of the wrong type."""
    require_kind(compressor, "compressor", Compressor)
    require_type(compressor, "name", str)
    require_type(compressor, "transforms_inputs", bool)
    require_type(compressor, "sequential", bool)
    if not isinstance(compressor.stored_as, Storage | None):
        refuse(compressor, "stored_as", compressor.stored_as, "give a member of Storage, or None")


def check_schedule(schedule: Schedule) -> None:
    """Raise PluginError for a schedule with a field of the wrong type."""
    require_kind(schedule, "schedule", Schedule)
    require_type(schedule, "name", str)
    require_type(schedule, "repeats", bool)
    read_file_limit(schedule)
    read_ranks(schedule)


def read_file_limit(schedule: Schedule) -> bool:
    """Whether the schedule limits the size of files; raises PluginError for another answer."""
    found = schedule.limits_files()
    if not isinstance(found, bool):
        refuse(schedule, "limits_files()", found, "it must be True or False")
    return found


def read_ranks(schedule: Schedule) -> Sequence[str]:
    """The metrics that the schedule needs; raises PluginError for what is no sequence of names."""
    found = schedule.ranks_by()
    is_sequence = isinstance(found, Sequence) and not isinstance(found, str)
    if not is_sequence or not all(isinstance(name, str) for name in found):
        refuse(schedule, "ranks_by()", found, "give a sequence of names of metrics")
    return found


def check_recovery(recovery: Recovery) -> None:
    """Raise PluginError for a recovery with a field of the wrong type, or texts that cannot be read."""
    require_kind(recovery, "recovery", Recovery)
    require_type(recovery, "name", str)
    read_training_texts(recovery)


def read_training_texts(recovery: Recovery) -> TrainingTexts | None:
    """The texts for training; raises PluginError for what cannot be read."""
    texts = recovery.texts()
    if texts is None:
        return None
    if not isinstance(texts, TrainingTexts):
        refuse(recovery, "texts()", texts, "give TrainingTexts, or None if it takes no training")
    if texts.path is not None and (not isinstance(texts.path, str) or not texts.path):
        refuse(recovery, "texts().path", texts.path, "give the path of a file, or None for samples of the base")
    for attribute in ("dataset", "subset", "split"):
        value = getattr(texts, attribute)
        if (value is None and attribute == "split") or (
            value is not None and (not isinstance(value, str) or not value)
        ):
            refuse(recovery, f"texts().{attribute}", value, "give a text, or leave it out")
    if texts.path is not None and texts.dataset is not None:
        refuse(recovery, "texts()", texts, "give a file or a data set, not both")
    for attribute, least in (("windows", 1), ("tokens", 2)):
        value = getattr(texts, attribute)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            refuse(recovery, f"texts().{attribute}", value, f"give a whole number from {least} to {LARGEST}")
    return texts


def name_path(group: str, plugin: object, path: str | None) -> str | None:
    """The key of the option that leads to a text at `path`: `GROUP.path`, or the group if no option has it."""
    if path is None:
        return None
    return f"{group}.path" if getattr(plugin, "path", None) == path else group


def name_option(recovery: Recovery, option: str, request: str) -> str:
    """What an error calls an `option` of a `request`: the key of that name, if the recovery has it."""
    if option in recovery.__dataclass_fields__:  # type: ignore[attr-defined]  # plugins are dataclasses
        return f"`recovery.{option}`"
    return f"`{option}` of the {request} of {name_plugin(recovery)}"


def read_unused(plugin: Compressor | Schedule | Recovery, found: object) -> dict[str, str]:
    """What `list_unused` of a plugin gave; raises PluginError for what is no mapping of its options to texts."""
    if isinstance(found, Mapping) and all(isinstance(text, str) for text in found.values()):
        options = {name: text for name, text in found.items() if isinstance(name, str) and hasattr(plugin, name)}
        if len(options) == len(found):
            return options
    refuse(plugin, "list_unused()", found, "give a mapping of its options to texts")


def require_kind(plugin: object, word: str, contract: type) -> None:
    """Raise PluginError for an object that does not derive from the contract."""
    if not isinstance(plugin, contract):
        raise PluginError(f"{show(plugin)} is no {word}; derive its class from {contract.__name__}")


def require_type(plugin: object, attribute: str, kind: type) -> None:
    """Raise PluginError for an attribute that is missing, or of another type."""
    found = getattr(plugin, attribute, None)
    if not isinstance(found, kind):
        refuse(plugin, attribute, found, f"give a value of type {kind.__name__}")


def refuse(plugin: object, attribute: str, value: object, rule: str) -> NoReturn:
    raise PluginError(f"`{attribute}` of {name_plugin(plugin)} is {show(value)}; {rule}")


def summarize_class(cls: type) -> str:
    """The first line of a class's docstring; empty if there is none."""
    text = cls.__doc__
    lines = text.strip().splitlines() if isinstance(text, str) else []
    return lines[0].strip() if lines else ""
