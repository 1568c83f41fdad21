from __future__ import annotations

import pytest

from mixcache.policies.budget import check_reach, num_computed_for, solved, speedup_of


def test_the_speedup_of_a_number_of_computed_steps() -> None:
    assert speedup_of(25, 50, 0.0) == 2.0
    # 50 / (20 + 30 * 0.1)
    assert speedup_of(20, 50, 0.1) == pytest.approx(50 / 23)
    assert speedup_of(25, 50, None) == pytest.approx(50 / 25.5)  # 2 % until it is measured


@pytest.mark.parametrize(
    ("speedup", "num_steps", "cached_share", "expected"),
    [
        (1.0, 50, 0.0, 50),
        (2.0, 50, 0.0, 25),
        (2.0, 50, 0.1, 22),  # 50 / (22 + 2.8) = 2.016; with 23 1.946
        (3.0, 20, 0.0, 7),  # 2.86, where 6 are 3.33
        (2.5, 30, 0.02, 12),
        (99.0, 50, 0.0, 4),
    ],
)
def test_as_many_steps_are_computed_as_come_nearest(
    speedup: float, num_steps: int, cached_share: float, expected: int
) -> None:
    assert num_computed_for(speedup, num_steps, cached_share) == expected


def test_a_wish_out_of_reach_names_what_is_in_it() -> None:
    check_reach(1.0, 4, None)
    check_reach(5.0, 20, 0.0)
    with pytest.raises(ValueError, match=r"^speedup=6 cannot be reached with 20 steps; they allow 1 to 5\.0$"):
        check_reach(6.0, 20, 0.0)
    with pytest.raises(ValueError, match=r"^speedup=2 with 4 steps would only break the clip: none of them is redun"):
        check_reach(2.0, 4, None)


def test_the_limit_is_found_and_kept_while_it_will_do() -> None:
    asked: list[float] = []

    def num_computed(limit: float) -> int:
        asked.append(limit)
        return round(10 / limit)

    assert num_computed(solved(num_computed, 25, 0.5)) == 25
    asked.clear()
    assert solved(num_computed, 20, 0.5) == 0.5
    assert asked == [0.5]
    assert num_computed(solved(num_computed, 2, 0.5)) == 2
    assert solved(lambda limit: 3, 9, 0.5) <= 0.5  # nothing is nearer
