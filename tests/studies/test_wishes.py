"""What a wish delivers: rows from what was kept, and the page."""

from __future__ import annotations

from studies.hard import allows
from studies.wishes import medians, page


def test_a_wish_that_is_missed_is_said_to_be() -> None:
    first, later = [[1.9, 2.0], [2.0, 2.0], [2.4, 2.5]], [[1.93, 2.0], [1.93, 2.0]]
    rows = [
        {"setting": "small, 20 steps", "wish": 2.0, "nearest": 20 / 9, "first": medians(first), "later": medians(later)}
    ]
    text = page(rows, 3)
    assert "| small, 20 steps | 2 | 2.22 | 2.00 (+0.0%); 2.00 by work; 1.90 to 2.40 |" in text
    assert "1.93 (-3.5%, missed); 2.00 by work; 1.93 to 1.93 |" in text
    assert "within 5% of the wish: 1 of 1 by time and 1 by work are" in text
    assert "within 3%: 0 of 1 by time and 1 by work are" in text


def test_wishes_that_are_refused_are_left_out() -> None:
    assert allows(3.0, 20)
    assert not allows(3.0, 8)
