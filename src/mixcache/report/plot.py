"""A matplotlib figure as the bytes of a file."""

from __future__ import annotations

import io
from typing import Any


def image(figure: Any, kind: str = "png", **settings: Any) -> bytes:
    """The figure as "png" or "svg"; other settings go to `savefig`."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, **settings)
    return content.getvalue()
