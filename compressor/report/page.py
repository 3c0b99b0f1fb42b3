"""Pages from templates: whatever a template is given is escaped, except pictures, which escape their own text."""

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compressor.artifacts.forecast_record import ForecastRecord
from compressor.artifacts.run_record import Record
from compressor.report import formatting
from compressor.report.tables import Table

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"
FILTERS: dict[str, Callable[..., str]] = {
    "bytes": formatting.format_bytes,
    "cost": formatting.describe_cost,
    "count": "{:,}".format,
    "estimate": formatting.format_estimate,
    "expected_cost": formatting.describe_expected_cost,
    "interval": formatting.format_interval,
    "join_names": formatting.join_names,
    "name_compressors": formatting.name_compressors,
    "number": formatting.format_number,
    "percent": formatting.format_percent,
}
"""What a template writes after a value and `|`, so that the sentences of a page can be in its template."""


def fill_page(template: str, record: Record | ForecastRecord, values: Mapping[str, object]) -> str:
    """The page of a template, from `values` and from what every page shows of its record."""
    phases = [[("phase", name), ("time", formatting.format_seconds(time))] for name, time in record.phases.items()]
    versions = [[("package", name), ("version", str(version))] for name, version in record.versions.items()]
    common = {
        "record": record,
        "model": formatting.name_model(record),
        "phases": Table("Time of each phase", phases),
        "versions": Table("Versions", versions),
        "settings": "\n".join(list_settings(record.config)),
    }
    return fill_template(template, {**common, **values})


def fill_template(name: str, values: Mapping[str, object]) -> str:
    """A name that the template uses and `values` lacks is an error."""
    return _open_templates().get_template(name).render(values)


def list_settings(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """`data.prefixes=64`, one a line: what a command line would say to get the same."""
    lines = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            lines += list_settings(value, f"{prefix}{key}.")
        else:
            words = value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)
            lines.append(f"{prefix}{key}={words}")
    return lines


@cache
def _open_templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    templates = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_clean,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    templates.filters |= FILTERS
    return templates


def _clean(value: object) -> object:
    """Of every expression, before it is escaped; markup that is escaped already stays as it is."""
    return formatting.clean_text(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
