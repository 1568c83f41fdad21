"""Results as people read them: a self-contained HTML page, Markdown tables and small videos."""

from __future__ import annotations

from mixcache.report.html import write_html
from mixcache.report.markdown import table
from mixcache.report.video import ClipPair, amplified_difference, side_by_side, write_mp4

__all__ = ["ClipPair", "amplified_difference", "side_by_side", "table", "write_html", "write_mp4"]
