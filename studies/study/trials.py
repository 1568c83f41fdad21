"""The rows of the study: a method, or a schedule and the engine that runs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mixcache.bench.methods import Method, fewer_steps
from mixcache.decision import Granularity
from studies.study.settings import (
    BLOCK,
    CFG,
    COOL_DOWNS,
    ERRORS,
    EVEN_IMPACTS,
    FEWER,
    HINDSIGHT,
    PLAIN,
    PLANNED,
    PROMPTS_OF_PART,
    SHARE,
    SPEEDUP,
    STEP,
    WARM_UPS,
    WITH_BLOCK,
    WITH_CFG,
)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One row: a method, or a schedule and the engine that runs it, at one step count."""

    part: str
    method: Method
    num_steps: int
    num_prompts: int
    curve: str = ""
    schedule: tuple[tuple[str, int], ...] = ()
    engine: str = ""
    trust: float = 1.0
    """With which a schedule extrapolates."""

    @property
    def identity(self) -> Any:
        """What its clip depends on, besides prompt and seed: rows of two parts may share it."""
        m = self.method
        return [
            m.policy,
            dict(m.settings),
            m.num_inference_steps,
            self.num_steps,
            self.schedule,
            self.engine,
            self.trust,
        ]


def even_schedule(
    num_steps: int, kinds: Sequence[Granularity], costs: Sequence[float], share: float, order: int
) -> tuple[tuple[str, int], ...]:
    """Cached steps of the `kinds` in turn, evenly between the ends, as many as bring the work nearest to `share`.

    `costs` are those of the kinds, in computed steps.
    """
    inner = range(min(4, num_steps // 3), num_steps - min(3, num_steps // 6))

    def work(count: int) -> float:
        return (num_steps - count + sum(costs[k % len(costs)] for k in range(count))) / num_steps

    count = min(range(len(inner) + 1), key=lambda n: abs(work(n) - share))
    places = {inner[int((k + 0.5) * len(inner) / count)]: kinds[k % len(kinds)] for k in range(count)}
    return tuple((places[i].value, order) if i in places else ("compute", 0) for i in range(num_steps))


def plain_trials(num_steps: int, num_prompts: int) -> Iterator[Trial]:
    """Fewer plain steps, what every row is held against."""
    for count in dict.fromkeys(max(2, round(num_steps * share)) for share in FEWER):
        yield Trial(part="plain", method=fewer_steps(count), num_steps=num_steps, num_prompts=num_prompts, curve=PLAIN)


def interference_trials(num_steps: int, num_prompts: int, block_cost: float) -> Iterator[Trial]:
    """Part a: the same share of work, stacked or in turn, with histories of computed values or of any."""
    cost = {STEP: 0.0, CFG: 0.5, BLOCK: block_cost}
    wanted: list[tuple[str, str, tuple[Granularity, ...], tuple[float, ...], int]] = []
    for order in (0, 1):
        wanted.append(("cfg+block in one step", "stacked", (CFG,), (block_cost / 2,), order))
        wanted.append(("cfg, block in turn", "", (CFG, BLOCK), (0.5, block_cost), order))
    for pair in ((CFG, BLOCK), (STEP, BLOCK), (STEP, CFG)):
        costs = tuple(cost[kind] for kind in pair)
        name = ", ".join(kind.value for kind in pair) + " in turn"
        if pair != (CFG, BLOCK):
            wanted.append((name, "", pair, costs, 1))
        wanted.append((f"{name}, histories fed", "fed", pair, costs, 1))
    for name, engine, kinds, costs, order in wanted:
        yield Trial(
            part="a",
            method=Method(family=f"{name}, order {order}"),
            num_steps=num_steps,
            num_prompts=num_prompts,
            schedule=even_schedule(num_steps, kinds, costs, SHARE, order),
            engine=engine,
        )


def boundary_trials(num_steps: int, num_prompts: int) -> Iterator[Trial]:
    """Part b: lengths of the ends, around a warm-up of 4 and a cool-down of 3."""
    for granularity in ("step", "cfg", "block"):
        for warm_up, cool_down in dict.fromkeys([*((w, 3) for w in WARM_UPS), *((4, c) for c in COOL_DOWNS)]):
            settings = {"granularity": granularity, "period": 3, "order": 0}
            settings |= {"num_warmup_steps": warm_up, "num_cooldown_steps": cool_down}
            name = f"{granularity}, warm-up {warm_up}, cool-down {cool_down}"
            method = Method(family=name, policy="every_nth", settings=settings)
            yield Trial(part="b", method=method, num_steps=num_steps, num_prompts=num_prompts)


def ablation_trials(num_steps: int, num_prompts: int) -> Iterator[Trial]:
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
    for name, given in settings.items():
        method = Method(family=name, policy="mixcache", settings=given)
        yield Trial(part="c", method=method, num_steps=num_steps, num_prompts=num_prompts)


def hindsight_trials(part: str, num_steps: int, num_prompts: int, errors: Sequence[float]) -> Iterator[Trial]:
    """The curve of `hindsight`."""
    for error in errors:
        method = Method(family=f"hindsight, error {error:g}", policy="hindsight", settings={"error": error})
        yield Trial(part=part, method=method, num_steps=num_steps, num_prompts=num_prompts, curve=HINDSIGHT)


def mixcache_trials(part: str, num_steps: int, num_prompts: int, cool_down: int, intervals: Any) -> Iterator[Trial]:
    """The curve of policy `mixcache`."""
    for interval in intervals:
        settings = {"first_interval": interval, "max_interval": interval, "num_cooldown_steps": cool_down}
        curve = f"mixcache, cool-down {cool_down}"
        method = Method(family=f"{curve}, interval to {interval}", policy="mixcache", settings=settings)
        yield Trial(part=part, method=method, num_steps=num_steps, num_prompts=num_prompts, curve=curve)


def planned_trial(part: str, num_steps: int, num_prompts: int, speedup: float) -> Trial:
    """Policy `planned` at one speed-up."""
    method = Method(family=f"planned, speedup {speedup:g}", policy="planned", settings={"speedup": speedup})
    return Trial(part=part, method=method, num_steps=num_steps, num_prompts=num_prompts, curve=PLANNED)


def curve_trials(num_steps: int, num_prompts: int, errors: Sequence[float]) -> Iterator[Trial]:
    """Part d: orders, and quality against speed-up. Side questions take half of the prompts."""
    few = max(1, num_prompts // 2)
    for order, periods in ((0, (1.5, 2, 2.5, 3)), (1, (1.5, 2, 2.5, 3)), (2, (2, 3))):
        for period in periods:
            settings = {"granularity": "step", "period": period, "order": order}
            method = Method(family=f"step, period {period:g}, order {order}", policy="every_nth", settings=settings)
            count = few if order == 2 else num_prompts
            yield Trial(part="d", method=method, num_steps=num_steps, num_prompts=count, curve=f"step, order {order}")
    yield from hindsight_trials("d", num_steps, num_prompts, errors)
    for curve, given, chosen in (
        (WITH_CFG, {"choices": ["step", "cfg"]}, ERRORS[2:9:2]),
        (WITH_BLOCK, {"choices": ["step", "cfg", "block"]}, ERRORS[2:9:2]),
        ("hindsight, order 0", {"order": 0}, ERRORS[2:7:3]),
        ("hindsight, order 2", {"order": 2}, ERRORS[2:7:3]),
    ):
        for error in chosen:
            method = Method(family=f"{curve}, error {error:g}", policy="hindsight", settings=given | {"error": error})
            yield Trial(part="d", method=method, num_steps=num_steps, num_prompts=few, curve=curve)
    yield from mixcache_trials("d", num_steps, num_prompts, 3, (1, 2, 3, 4))
    yield from mixcache_trials("d", num_steps, num_prompts, 8, (1, 2, 3, 4)[: 4 if num_steps > 16 else 0])
    for speedup in (1.5, 2.0, 2.5, 3.0):
        yield planned_trial("d", num_steps, num_prompts, speedup)


def oracle_trials(num_steps: int, num_prompts: int) -> Iterator[Trial]:
    """Part e: what the searched schedule is held against."""
    yield planned_trial("e", num_steps, num_prompts, SPEEDUP)
    yield from hindsight_trials("e", num_steps, num_prompts, ERRORS[1:9])
    yield from mixcache_trials("e", num_steps, num_prompts, 3, (1, 2, 3, 4))


def all_trials(parts: Sequence[str], num_steps: Sequence[int], num_prompts: int, block_cost: float) -> list[Trial]:
    """Every row; parts a, b, c and e at the first step count alone, and later counts on half of the prompts."""
    first = num_steps[0]
    trials: list[Trial] = []
    few = {part: min(count, num_prompts) for part, count in PROMPTS_OF_PART.items()}
    for place, count in enumerate(num_steps):
        if place and "d" not in parts:
            break
        prompts = num_prompts if not place else max(1, num_prompts // 2)
        trials += plain_trials(count, prompts if "d" in parts else min(prompts, max(few.values())))
        if "d" in parts:
            trials += curve_trials(count, prompts, ERRORS[::2] if place else ERRORS)
    makers: dict[str, Callable[[], Iterator[Trial]]] = {
        "a": lambda: interference_trials(first, few["a"], block_cost),
        "b": lambda: boundary_trials(first, few["b"]),
        "c": lambda: ablation_trials(first, few["c"]),
        "e": lambda: oracle_trials(first, few["e"]),
    }
    return trials + [trial for part in parts if part in makers for trial in makers[part]()]
