"""What the names of --methods stand for."""

from __future__ import annotations

import pytest

from mixcache.bench.families import FAMILIES, GROUPS, OURS, PEERS, select, split


@pytest.mark.parametrize("num_steps", [50, 20])
@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in PEERS])
def test_a_family_gives_methods_of_different_names(name: str, num_steps: int) -> None:
    methods = FAMILIES[name](num_steps)
    assert methods
    assert len({method.name for method in methods}) == len(methods)
    assert not any(method.is_peer for method in methods)


def test_fewer_steps_are_shares_of_the_benchmarks() -> None:
    assert [method.num_inference_steps for method in FAMILIES["fewer-steps"](50)] == [33, 25, 20, 15]
    assert [method.num_inference_steps for method in FAMILIES["fewer-steps"](20)] == [13, 10, 8, 6]
    assert [method.num_inference_steps for method in FAMILIES["fewer-steps"](4)] == [3, 2]


def test_groups_are_made_of_families() -> None:
    assert GROUPS["peers"] == tuple(PEERS)
    assert GROUPS["all"] == (*OURS, "fewer-steps", *PEERS)
    for names in GROUPS.values():
        assert set(names) <= set(FAMILIES)
    assert not set(GROUPS) & set(FAMILIES)
    chosen = select(["ours"], 50)
    assert {method.policy for method in chosen} == {"hold", "hindsight", "mixcache", "every_nth"}


def test_a_group_and_its_families_give_each_method_once() -> None:
    names = [method.name for method in select(["mixcache", "ours", "quick"], 50)]
    assert len(set(names)) == len(names)
    assert names[:2] == ["mixcache, defaults", "mixcache, first_interval 6, max_interval 6"]
    assert select(["ours"], 50) == select([*GROUPS["ours"]], 50)


def test_a_policy_takes_settings() -> None:
    (method,) = select(["hindsight:error=0.01:num-warmup-steps=3"], 50)
    assert method.name == "hindsight, error 0.01, num_warmup_steps 3"
    assert method.policy == "hindsight"
    assert method.settings == {"error": 0.01, "num_warmup_steps": 3}
    assert not method.is_peer


def test_a_setting_may_be_a_list_or_a_map() -> None:
    text = 'hindsight:granularities=["step","cfg"]:predictors=line,ours,mixcache:impacts={"step":1.0,"cfg":0.5},quick'
    names = split(text, ",")
    assert len(names) == 4
    first, _, third, _ = names
    (hindsight,), (mixcache,) = select([first], 50), select([third], 50)
    assert hindsight.settings == {"granularities": ["step", "cfg"], "predictors": "line"}
    assert mixcache.settings == {"impacts": {"step": 1.0, "cfg": 0.5}}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["hindsigt"], r"unknown method 'hindsigt'; did you mean 'hindsight'\?"),
        (["ours", "al"], r"unknown method 'al'; did you mean 'all'\?"),
        ([], r"no method is named \(there are: ours, peers, all, hold, hindsight"),
        (["hindsigt:error=1"], r"unknown policy 'hindsigt'; did you mean 'hindsight'\?"),
        (["hindsight:eror=1"], r"unknown setting of policy hindsight 'eror'; did you mean 'error'\?"),
        (["hindsight:error"], "setting 'error' is not NAME=VALUE"),
        (["hindsight:error=much"], "error='much'"),
        (["hold:speedup=0.5"], "speedup=0.5 must be a finite number of at least 1"),
    ],
)
def test_an_unknown_name_is_an_error(names: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select(names, 50)
