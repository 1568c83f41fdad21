"""How every page is made: from a template in this folder, with the style that all share."""

from __future__ import annotations

import functools
from typing import Any

from mixcache.report import figures

FILTERS = (
    figures.byte_size,
    figures.plain_text,
    figures.psnr,
    figures.setting,
    figures.speedup,
    figures.ssim,
    figures.with_unit,
)


@functools.cache
def _environment() -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mixcache.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in FILTERS}
    return environment


def rendered(template: str, **values: Any) -> str:
    """The page; jinja2.UndefinedError for a value that the template asks for and is not given."""
    return str(_environment().get_template(template).render(**values))
