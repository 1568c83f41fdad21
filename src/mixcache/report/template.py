"""How every page is made: from a template in this folder, with the style that all share."""

from __future__ import annotations

import functools
from typing import Any


@functools.cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("mixcache.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def rendered(template: str, **values: Any) -> str:
    """The page; jinja2.UndefinedError for a value that the template asks for and is not given."""
    return str(_environment().get_template(template).render(**values))
