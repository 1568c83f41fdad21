from __future__ import annotations

from made_up_results import made_up, make_record, make_result

__all__ = ["made_up", "make_record", "make_result"]
