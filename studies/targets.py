"""What this project set itself, and whether the results of a benchmark meet it.

python -m studies.targets my-bench/results.json
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from mixcache.bench.records import best_at
from mixcache.bench.results import FEWER, SPEEDUPS, load, points
from mixcache.decision import CACHED
from mixcache.generation import final_latents, open_model
from mixcache.hosts.diffusers.denoisers import blocks_of
from mixcache.hosts.diffusers.rows import row_for
from mixcache.predictors import predictor_of

FIRST_BLOCK = "first-block-cache"
UNCALIBRATED_DB, CALIBRATED_DB = 1.0, 2.0
"""Above the best peer."""
ADHERENCE, OF_IDEAL, OF_IDEAL_MIXCACHE = 0.02, 0.95, 0.93
TUNED_ON = "shapes-wan"
"""The model that the defaults of `mixcache` were chosen on."""
TUNED_SPEEDUPS, OTHER_SPEEDUPS = (1.9, 2.1), (1.7, math.inf)
"""That it is to reach there, and on others."""
SCALARS = 1.001
"""Room beside the tensors for the few numbers that are kept with them."""
NUM_STEPS = 4
"""Of the call that tells how large a tensor of tokens is."""
NUM_CLIFF_ERRORS, CLIFF_DB = 12, 3.0
KINDS = {"ours": "policy without calibration", "calibrated": "calibrated policy"}
Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """One of them, held against a run."""

    text: str
    measured: str
    is_met: bool | None
    """None where the run cannot tell."""

    @property
    def line(self) -> str:
        word = {True: "yes", False: "NO", None: "–"}[self.is_met]
        return f"- {word}: {self.text}: {self.measured}"


def targets(result: Mapping[str, Any]) -> list[Target]:
    """Those that a run says something of."""
    facts, rows = result["methods"], result["summary"]
    of: dict[str, set[str]] = {"peer": set(), "ours": set(), "calibrated": set()}
    for fact in facts.values():
        kind = "peer" if fact["is_peer"] else "calibrated" if fact["is_calibrated"] else "ours"
        if fact["family"] != FEWER:
            of[kind].add(fact["family"])
    found = []
    for speedup in SPEEDUPS if of["peer"] else ():
        at = {family: values[f"{speedup:g}"] for family, values in result["at"].items()}
        for kind, gain in (("ours", UNCALIBRATED_DB), ("calibrated", CALIBRATED_DB)):
            found.append(_against_peers(speedup, kind, gain, at, of))
    found += [*_adherence(rows, of), *_of_ideal(facts, rows), *_memory(result)]
    return [*found, *_mixcache(result), *_wished(rows), *_cliff(rows)]


def _best(families: set[str], at: Mapping[str, float | None]) -> tuple[str, float] | None:
    known = [(family, value) for family in sorted(families) if (value := at.get(family)) is not None]
    return max(known, key=lambda pair: pair[1], default=None)


def _against_peers(
    speedup: float, kind: str, gain: float, at: Mapping[str, float | None], of: Mapping[str, set[str]]
) -> Target:
    ours, peer = _best(of[kind], at), _best(of["peer"], at)
    text = f"{speedup:g}x: the best {KINDS[kind]} at least {gain:g} dB above the best peer"
    if ours is None:
        return Target(text=text, measured="none of ours is that fast", is_met=None if peer is None else False)
    if peer is None:
        return Target(text=text, measured=f"{ours[0]} {ours[1]:.1f} dB; no peer is that fast", is_met=None)
    measured = f"{ours[0]} {ours[1]:.1f} dB, {peer[0]} {peer[1]:.1f} dB"
    return Target(text=text, measured=measured, is_met=ours[1] - peer[1] >= gain)


def _adherence(rows: Rows, of: Mapping[str, set[str]]) -> Iterator[Target]:
    """Of results of before, which say how much of its caption a clip shows."""
    plain = next((row.get("adherence") for row in rows if row["method"] == "plain"), None)
    for kind in ("ours", "calibrated") if plain is not None else ():
        best = _best(of[kind], {family: best_at(points(rows, family), 2.0) for family in of[kind]})
        if best is not None:
            nearest = min((r for r in rows if r["family"] == best[0]), key=lambda row: abs(row["speedup"] - 2.0))
            right, most = nearest["adherence"], f"at most {ADHERENCE:.0%} less often than plain clips"
            yield Target(
                text=f"2x: the best {KINDS[kind]} gets captions right {most}",
                measured=f"{nearest['method']} ({nearest['speedup']:.2f}x) {right:.1%}, plain {plain:.1%}",
                is_met=plain - right <= ADHERENCE + 1e-9,
            )


def _of_ideal(facts: Mapping[str, Any], rows: Rows) -> Iterator[Target]:
    ratios: dict[str, list[float]] = {}
    for row in rows:
        fact = facts.get(row["method"])
        if fact and not fact["is_peer"] and row["family"] != FEWER and row["ideal"] > 1:
            ratios.setdefault(row["family"], []).append(row["of_ideal"])
    medians = {family: median(values) for family, values in ratios.items()}
    if medians:
        yield Target(
            text=f"wall-clock at least {OF_IDEAL:.0%} of the ideal speed-up, median over settings, every policy",
            measured=", ".join(f"{family} {value:.1%}" for family, value in medians.items()),
            is_met=min(medians.values()) >= OF_IDEAL,
        )


def _memory(result: Mapping[str, Any]) -> Iterator[Target]:
    """For `step` and `cfg`, and for `block`, which keeps a tensor of tokens for each branch and value remembered."""
    added: dict[str, int] = {}
    for fact in result["methods"].values():
        if fact["memory_added_bytes"] is not None and not fact["failure"]:
            added[fact["family"]] = max(fact["memory_added_bytes"], added.get(fact["family"], 0))
    small = {name: size for name, size in added.items() if name.startswith(("every_nth step", "every_nth cfg"))}
    if FIRST_BLOCK in added and small:
        yield Target(
            text=f"memory added by step and cfg at most that of {FIRST_BLOCK}",
            measured=_kib({**small, FIRST_BLOCK: added[FIRST_BLOCK]}),
            is_met=max(small.values()) <= added[FIRST_BLOCK],
        )
    for name, size in added.items():
        if predictor := re.fullmatch(r"every_nth block, (\w+)", name):
            # results of before say it themselves
            tensor = result.get("token_bytes") or token_bytes(result["model"], json.dumps(result["arguments"]))
            allowed = predictor_of(predictor[1]).num_values * tensor
            yield Target(
                text=f"memory added by {name} at most a token-sized tensor per branch and entry",
                measured=_kib({"added": size, "such tensors": allowed}),
                is_met=size <= SCALARS * allowed,
            )


@functools.cache
def token_bytes(model: str, arguments: str) -> int:
    """Size of a tensor of all tokens for every branch, as the model's last block hands it on in a call with these
    arguments (JSON); with the text's where that block hands it on too."""
    pipeline, _ = open_model(model)
    sizes: list[int] = []

    def after(block: Any, args: Any, output: Any) -> None:
        sizes.append(sum(stream.nbytes for stream in (output if isinstance(output, tuple) else (output,))))

    handle = blocks_of(pipeline.transformer, row_for(pipeline.transformer, pipeline))[-1].register_forward_hook(after)
    final_latents(pipeline, "", seed=0, **json.loads(arguments) | {"num_inference_steps": NUM_STEPS})
    handle.remove()
    return sum(sizes) // NUM_STEPS


def _kib(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {size / 1024:.0f} KiB" for name, size in sizes.items())


def _mixcache(result: Mapping[str, Any]) -> Iterator[Target]:
    """What is asked of policy `mixcache` with its defaults."""
    row = next((row for row in result["summary"] if row["method"] == "mixcache, defaults"), None)
    if row is None:
        return
    is_tuned = result.get("model") == TUNED_ON
    least, most = TUNED_SPEEDUPS if is_tuned else OTHER_SPEEDUPS
    wanted = f"between {least:g} and {most:g}" if is_tuned else f"at least {least:g}"
    gain = row["margin_db"]
    shares = {name: row["steps"].get(name, 0) for name in _usable(result["summary"])}
    yield Target(
        text=f"mixcache: speed-up {wanted}", measured=f"{row['speedup']:.2f}x", is_met=least <= row["speedup"] <= most
    )
    yield Target(
        text="mixcache: PSNR no lower than that of fewer plain steps of the same time",
        measured="outside the steps that were run" if gain is None else f"{gain:+.1f} dB",
        is_met=None if gain is None else gain >= 0,
    )
    yield Target(
        text=f"mixcache: at least {OF_IDEAL_MIXCACHE:.0%} of the ideal speed-up",
        measured=f"{row['of_ideal']:.1%}",
        is_met=row["of_ideal"] >= OF_IDEAL_MIXCACHE,
    )
    yield Target(
        text="mixcache: every granularity of the model chosen",
        measured=", ".join(f"{name} {share:.1f}" for name, share in shares.items()) + " steps",
        is_met=all(share > 0 for share in shares.values()),
    )


def _wished(rows: Rows) -> Iterator[Target]:
    """What is asked of a policy at every speed-up that was wished of it."""
    for row in rows:
        asked = re.match(r"(?:hold|planned), (?:.*, )?speedup ([\d.]+)", row["method"])
        if asked:
            yield Target(
                text=f"{row['method']}: within 5% of the {asked[1]}x asked for",
                measured=f"{row['speedup']:.2f}x",
                is_met=abs(row["speedup"] / float(asked[1]) - 1) <= 0.05,
            )


def _usable(rows: Rows) -> list[str]:
    """Granularities that the model has, as far as the run tells: those whose own cadence cached nothing are not."""
    names = []
    for granularity in CACHED:
        cadences = [row for row in rows if row["family"].startswith(f"every_nth {granularity},")]
        if not cadences or any(row["steps"].get(granularity.value) for row in cadences):
            names.append(granularity.value)
    return names


def _cliff(rows: Rows) -> Iterator[Target]:
    """Whether the one setting of `hindsight` can be turned without a surprise, where enough values of it were run."""
    named = [(re.fullmatch(r"hindsight, error ([\d.e-]+)", row["method"]), row) for row in rows]
    by_error = sorted(((float(name[1]), row) for name, row in named if name), key=lambda pair: pair[0])
    pairs = list(pairwise((error, row) for error, row in by_error if row["psnr_db"] is not None))
    if len(by_error) < NUM_CLIFF_ERRORS or not pairs:
        return
    drop, at = max((low["psnr_db"] - high["psnr_db"], error) for (_, low), (error, high) in pairs)
    rise = max(high["psnr_db"] - low["psnr_db"] for (_, low), (_, high) in pairs)
    slower = max(low["ideal"] - high["ideal"] for (_, low), (_, high) in pairs)
    yield Target(
        text=f"hindsight: from one of {len(by_error)} values of error to the next at most {CLIFF_DB:g} dB lost",
        measured=f"{drop:.1f} dB, to error {at:g}; {max(0.0, rise):.1f} dB won where most",
        is_met=drop <= CLIFF_DB,
    )
    yield Target(
        text="hindsight: more error is never less work saved",
        measured=f"{-slower:+.2f}x where least",
        is_met=slower <= 0,
    )


def tally(result: Mapping[str, Any]) -> str:
    """How many of them are met."""
    told = [target.is_met for target in targets(result) if target.is_met is not None]
    return f"{sum(told)} of {len(told)} targets are met"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+")
    for path in parser.parse_args(arguments).results:
        result = load(path)
        print("\n".join([f"{path}: {tally(result)}", *(target.line for target in targets(result))]))


if __name__ == "__main__":
    main()
