"""What is asked: the methods of each part, at a number of steps, on a number of prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mixcache.bench.methods import Account, Case, Method, account_of, cadence, fewer_steps, policy_method
from mixcache.calibration.schedules import trace_of
from mixcache.config import MixCacheConfig
from mixcache.decision import Choice, Granularity
from mixcache.hosts.diffusers.attachment import attach
from mixcache.policies import Replay
from studies.study.engines import ENGINES

COMPUTE, STEP, CFG, BLOCK = Granularity.COMPUTE, Granularity.STEP, Granularity.CFG, Granularity.BLOCK
PARTS = ("a", "b", "c", "d", "e")
PROMPTS_OF_PART = {"a": 4, "b": 3, "c": 4, "e": 4}
"""Most prompts of a part; part d and the plain pipeline take all."""
SPEEDUP = 2.0
"""Where methods are compared."""
SHARE = 0.6
"""Block work that the schedules of part a still do."""
ERRORS = tuple(float(f"{0.0005 * 120 ** (k / 11):.3g}") for k in range(12))
WARM_UPS, COOL_DOWNS = (1, 2, 4, 8), (0, 1, 3, 6, 10)
FEWER = (0.76, 0.6, 0.5, 0.4, 0.3)
"""Numbers of plain steps, as shares of all."""
EVEN_IMPACTS = {"step": 1.0, "cfg": 1.0, "block": 1.0}
WITH_CFG, WITH_BLOCK = "hindsight, with cfg", "hindsight, with block"
ORDER_0, ORDER_2 = "hindsight, order 0", "hindsight, order 2"


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """Methods that stand side by side in one part; those of a family make a curve."""

    part: str
    num_steps: int
    num_prompts: int
    methods: list[Method]


def questions(parts: Sequence[str], num_steps: Sequence[int], num_prompts: int, block_cost: float) -> list[Question]:
    """Parts a, b, c and e at the first step count alone, and later counts on half of the prompts."""
    first, found = num_steps[0], []
    few = {part: min(count, num_prompts) for part, count in PROMPTS_OF_PART.items()}

    def ask(part: str, count: int, prompts: int, methods: list[Method]) -> None:
        found.append(Question(part=part, num_steps=count, num_prompts=prompts, methods=methods))

    for count in num_steps if "d" in parts else (first,):
        prompts = num_prompts if count == first else max(1, num_prompts // 2)
        ask("plain", count, prompts if "d" in parts else max(few.values()), fewer(count))
        if "d" in parts:
            ask("d", count, prompts, curves(count, ERRORS if count == first else ERRORS[::2]))
            ask("d", count, max(1, prompts // 2), side_questions())
    makers = {
        "a": lambda: interference(first, block_cost),
        "b": ends,
        "c": ablation,
        "e": lambda: [policy_method("planned", speedup=SPEEDUP), *hindsight(ERRORS[1:9]), *mixcache(3)],
    }
    for part in parts:
        if part in makers:
            ask(part, first, few[part], makers[part]())
    return found


def fewer(num_steps: int) -> list[Method]:
    """Fewer plain steps, what every row is held against."""
    return [fewer_steps(count) for count in dict.fromkeys(max(2, round(num_steps * share)) for share in FEWER)]


def interference(num_steps: int, block_cost: float) -> list[Method]:
    """Part a: the same share of work, stacked or in turn, with histories of computed values or of any."""
    cost = {STEP: 0.0, CFG: 0.5, BLOCK: block_cost}
    found = []

    def ask(name: str, engine: str, kinds: Sequence[Granularity], costs: Sequence[float], order: int) -> None:
        schedule = even_schedule(num_steps, kinds, costs, SHARE, order)
        found.append(scheduled(name, f"order {order}", schedule, engine=engine))

    for order in (0, 1):
        ask("cfg+block in one step", "stacked", (CFG,), (block_cost / 2,), order)
        ask("cfg, block in turn", "", (CFG, BLOCK), (0.5, block_cost), order)
    for pair in ((CFG, BLOCK), (STEP, BLOCK), (STEP, CFG)):
        costs, name = [cost[kind] for kind in pair], ", ".join(kind.value for kind in pair) + " in turn"
        if pair != (CFG, BLOCK):
            ask(name, "", pair, costs, 1)
        ask(f"{name}, histories fed", "fed", pair, costs, 1)
    return found


def even_schedule(
    num_steps: int, kinds: Sequence[Granularity], costs: Sequence[float], share: float, order: int
) -> list[Choice]:
    """Cached steps of the `kinds` in turn, evenly between the ends, as many as bring the work nearest to `share`.

    `costs` are those of the kinds, in computed steps.
    """
    inner = range(min(4, num_steps // 3), num_steps - min(3, num_steps // 6))

    def work(count: int) -> float:
        return (num_steps - count + sum(costs[k % len(costs)] for k in range(count))) / num_steps

    count = min(range(len(inner) + 1), key=lambda n: abs(work(n) - share))
    places = {inner[int((k + 0.5) * len(inner) / count)]: kinds[k % len(kinds)] for k in range(count)}
    return [(places[i], order) if i in places else (COMPUTE, 0) for i in range(num_steps)]


def scheduled(family: str, setting: str, schedule: Sequence[Choice], *, engine: str = "", trust: float = 1.0) -> Method:
    """A schedule fixed beforehand, and the engine that runs it."""
    return Method(family=family, setting=setting, attach=partial(forced, schedule, engine, trust))


@contextlib.contextmanager
def forced(schedule: Sequence[Choice], engine: str, trust: float, case: Case) -> Iterator[Account]:
    """The pipeline of the case follows the schedule."""
    config = MixCacheConfig(policy=Replay(trace=trace_of(schedule, trust)))
    with attach(case.pipeline, config, ENGINES[engine]) as handle:
        yield lambda: account_of(handle)


def ends() -> list[Method]:
    """Part b: lengths of the ends, around a warm-up of 4 and a cool-down of 3."""
    return [
        Method(
            family=granularity,
            setting=f"warm-up {warm_up}, cool-down {cool_down}",
            policy="every_nth",
            settings={"granularity": granularity, "period": 3, "order": 0}
            | {"num_warmup_steps": warm_up, "num_cooldown_steps": cool_down},
        )
        for granularity in ("step", "cfg", "block")
        for warm_up, cool_down in dict.fromkeys([*((w, 3) for w in WARM_UPS), *((4, c) for c in COOL_DOWNS)])
    ]


def ablation() -> list[Method]:
    """Part c: policy `mixcache` and what is left of it without one of its parts."""
    fixed = {"delta_1": 0, "delta_2": 1e9}
    settings: dict[str, dict[str, Any]] = {
        "mixcache": {},
        "without trigger, interval 1": fixed | {"first_interval": 1, "max_interval": 1},
        "without trigger, interval 2": fixed | {"first_interval": 2, "max_interval": 2},
        "without impact": {"impacts": EVEN_IMPACTS},
        "without penalty": {"penalty": 1},
        **{f"{name} alone": {"impacts": {name: 1.0}} for name in ("step", "cfg", "block")},
    }
    return [Method(family=name, policy="mixcache", settings=given) for name, given in settings.items()]


def curves(num_steps: int, errors: Sequence[float]) -> list[Method]:
    """Part d: quality against speed-up."""
    return [
        *(cadence("step", period, order) for order in (0, 1) for period in (1.5, 2, 2.5, 3)),
        *hindsight(errors),
        *mixcache(3),
        *(mixcache(8) if num_steps > 16 else []),
        *(policy_method("planned", speedup=speedup) for speedup in (1.5, 2.0, 2.5, 3.0)),
    ]


def side_questions() -> list[Method]:
    """Part d: other orders and choices."""
    return [
        *(cadence("step", period, 2) for period in (2, 3)),
        *hindsight(ERRORS[2:9:2], WITH_CFG, choices=["step", "cfg"]),
        *hindsight(ERRORS[2:9:2], WITH_BLOCK, choices=["step", "cfg", "block"]),
        *hindsight(ERRORS[2:7:3], ORDER_0, order=0),
        *hindsight(ERRORS[2:7:3], ORDER_2, order=2),
    ]


def hindsight(errors: Sequence[float], family: str = "hindsight", **settings: Any) -> list[Method]:
    """The curve of `hindsight`."""
    return [
        Method(family=family, setting=f"error {error:g}", policy="hindsight", settings=settings | {"error": error})
        for error in errors
    ]


def mixcache(cool_down: int) -> list[Method]:
    """The curve of policy `mixcache`."""
    return [
        Method(
            family=f"mixcache, cool-down {cool_down}",
            setting=f"interval to {interval}",
            policy="mixcache",
            settings={"first_interval": interval, "max_interval": interval, "num_cooldown_steps": cool_down},
        )
        for interval in (1, 2, 3, 4)
    ]
