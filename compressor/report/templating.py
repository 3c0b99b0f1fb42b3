"""Pages from templates: whatever a template is given is escaped, except pictures, which escape their own text."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from compressor.report.formatting import clean_text

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).parent / "templates"


def fill_template(name: str, values: dict[str, object]) -> str:
    """The page of a template; a name that the template uses and `values` lacks is an error."""
    return _open_templates().get_template(name).render(values)


@cache
def _open_templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        finalize=_clean,
        undefined=StrictUndefined,
        trim_blocks=True,
    )


def _clean(value: object) -> object:
    """Of every expression, before it is escaped; markup that is escaped already stays as it is."""
    return clean_text(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
