"""Text of the pages that studies write."""

from __future__ import annotations

import textwrap

WIDTH = 120


def paragraph(*sentences: str) -> str:
    """Sentences as lines of a page."""
    return textwrap.fill(" ".join(sentences), WIDTH, break_long_words=False, break_on_hyphens=False)
