"""What a wished speed-up delivers, by wall-clock of the denoising loop, without a profile.

    python -m studies.wishes --out docs/results

For each setting, caption and wish the latents of the plain clip, then those on a new handle (`first`) and on one that
has made the captions before (`later`), whose order turns from caption to caption, then the plain ones of the next wish:
what is delivered is the mean of the plain loops before and after over the cached one. Medians over the captions;
`later` leaves the first caption out.
Profiles that are shipped are taken away. What was measured is kept in `--work`, and a run cut off goes on from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console

from mixcache import generation
from mixcache.arguments import accepted_arguments
from mixcache.bench.meter import WorkMeter, work_share
from mixcache.bench.source import code_hash
from mixcache.hosts.diffusers.attachment import enable
from mixcache.hosts.diffusers.denoisers import experts_of
from mixcache.policies.budget import num_computed_for
from mixcache.profiles import Profile, profile_of
from mixcache.report.markdown import table
from mixcache.store import Store, write_json, write_whole
from studies.hard import allows, judging

WISHES = (1.5, 2.0, 2.5, 3.0)
GUIDANCE = {"shapes-wan": 7.0, "shapes-hunyuan": 10.0, "shapes-cogvideox": 10.0}
"""Of the hard settings; the model's own in easy ones."""
EASY_STEPS = 20
"""At which the easy settings are measured too."""
STEPS = (20, 30, 50)
SEED = 9000
FIRST, LATER = 0.05, 0.03
"""By how much a wish may be missed."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--models", nargs="+", default=list(GUIDANCE), choices=GUIDANCE)
    parser.add_argument("--steps", type=int, nargs="+", default=list(STEPS))
    parser.add_argument("--work", type=Path, default=Path("build/wishes"))
    parser.add_argument("--out", type=Path, help="folder for wishes.json and wishes.md")
    args = parser.parse_args(arguments)
    rows = []
    for num_steps, model in itertools.product(args.steps, args.models):
        for guidance in (GUIDANCE[model], None) if num_steps == EASY_STEPS else (GUIDANCE[model],):
            rows += Trials(model, num_steps, guidance, args.work).rows(judging(args.num_prompts))
    Console(soft_wrap=True).print(page(rows, args.num_prompts))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        write_json(args.out / "wishes.json", {"machine": generation.machine(torch.device("cpu")), "rows": rows})
        write_whole(args.out / "wishes.md", page(rows, args.num_prompts))


class Trials:
    """The clips of one setting."""

    def __init__(self, model: str, num_steps: int, guidance: float | None, work: Path) -> None:
        self.pipeline, defaults = generation.open_model(model)
        own = {"num_inference_steps": num_steps} | ({} if guidance is None else {"guidance_scale": guidance})
        self.call = accepted_arguments(self.pipeline, defaults | own)
        self.nothing = profile_of(model, list(experts_of(self.pipeline).values()))
        self.num_steps = num_steps
        self.wishes = [wish for wish in WISHES if allows(wish, num_steps)]
        self.name = f"{model}, {num_steps} steps, guidance {self.call['guidance_scale']:g}"
        self.store = Store(work / "wishes.jsonl")

    def made(self, index: int, caption: str) -> tuple[float, list[int]]:
        """Seconds and work of the denoising loop."""
        meter = WorkMeter()
        with meter.on(self.pipeline):
            seconds = generation.loop_seconds(
                self.pipeline, caption, seed=SEED + index, on_step=meter.mark, **self.call
            )
        return seconds, meter.steps

    def wished(self, index: int, caption: str, speedup: float, known: Profile) -> tuple[float, list[int], Profile]:
        """Of a clip on a handle that knows so much; and what it knows then."""
        with enable(self.pipeline, speedup=speedup, profile=known) as handle:
            return *self.made(index, caption), handle.profile or known

    def of_caption(self, index: int, caption: str, known: Mapping[float, Profile]) -> dict[str, Any]:
        """For each wish what was delivered by time and by work, first and later, and what is known afterwards."""
        before, work = self.made(index, caption)
        found = {}
        for wish in self.wishes:
            turn = -1 if index % 2 else 1
            pair = [self.wished(index, caption, wish, knows) for knows in (self.nothing, known[wish])[::turn]][::turn]
            after, _ = self.made(index, caption)
            found[f"{wish:g}"] = {
                "delivered": [[(before + after) / 2 / own, 1 / work_share(done, work)] for own, done, _ in pair],
                "known": json.dumps(asdict(pair[1][2])),
            }
            before = after
        return found

    def rows(self, captions: Sequence[str]) -> list[dict[str, Any]]:
        """For each wish what was delivered, medians over the captions."""
        known, found = dict.fromkeys(self.wishes, self.nothing), []
        for index, caption in enumerate(captions):
            identity = ["wishes", code_hash(), self.name, caption]
            found.append(self.store.get(identity, partial(self.of_caption, index, caption, known)))
            known = {wish: Profile.parse(found[-1][f"{wish:g}"]["known"], "what is known") for wish in self.wishes}
        rows = []
        for wish in self.wishes:
            delivered = [own[f"{wish:g}"]["delivered"] for own in found]
            first, later = [own[0] for own in delivered], [own[1] for own in delivered[1:]]
            nearest = self.num_steps / num_computed_for(wish, self.num_steps, 0.0)
            rows.append(
                {
                    "setting": self.name,
                    "wish": wish,
                    "nearest": nearest,
                    "first": medians(first),
                    "later": medians(later),
                }
            )
        return rows


def medians(delivered: Sequence[Sequence[float]]) -> dict[str, float]:
    times, works = zip(*delivered, strict=True)
    return {
        "by time": median(times),
        "by work": median(works),
        "time over work": median(time / work for time, work in delivered),
        "slowest": min(times),
        "fastest": max(times),
    }


def is_kept(row: Mapping[str, Any], which: str, by: str, most: float) -> bool:
    """True where the median of the first or later clips is near enough to the wish, by time or by work."""
    return bool(abs(row[which][by] / row["wish"] - 1) <= most)


def page(rows: Sequence[Mapping[str, Any]], num_prompts: int) -> str:
    """All of it as Markdown."""

    def told(row: Mapping[str, Any], which: str, most: float) -> str:
        delivered = row[which]
        met = "" if is_kept(row, which, "by time", most) else ", missed"
        return (
            f"{delivered['by time']:.2f} ({delivered['by time'] / row['wish'] - 1:+.1%}{met}); "
            f"{delivered['by work']:.2f} by work; {delivered['slowest']:.2f} to {delivered['fastest']:.2f}"
        )

    def counts(which: str, most: float) -> str:
        by_time, by_work = (sum(is_kept(row, which, by, most) for row in rows) for by in ("by time", "by work"))
        return f"{by_time} of {len(rows)} by time and {by_work} by work"

    shares = [row[which]["time over work"] for row in rows for which in ("first", "later")]
    return "\n".join(
        [
            "# What a wish delivers\n",
            f"Written by `python -m studies.wishes --num-prompts {num_prompts} --out docs/results`: as many held-out "
            "captions, one thread, no profile; the plain loop's time over the cached one's, interleaved, median, and "
            "the slowest and fastest clip. *First* is the first clip on a handle, *later* one after those of the "
            "captions before. *Nearest* is the speed-up by work of the whole number of computed steps that comes "
            "nearest to the wish. A first one is to be within "
            f"{FIRST:.0%} of the wish: {counts('first', FIRST)} are; a later one within {LATER:.0%}: "
            f"{counts('later', LATER)} are. By time a speed-up is {median(shares):.0%} "
            f"of what it is by work ({min(shares):.0%} to {max(shares):.0%}, medians of each row), which leaves out "
            "what scheduler, measuring and correcting take.\n",
            table(
                [
                    {
                        "setting": row["setting"],
                        "wish": f"{row['wish']:g}",
                        "nearest": f"{row['nearest']:.2f}",
                        "first": told(row, "first", FIRST),
                        "later": told(row, "later", LATER),
                    }
                    for row in rows
                ]
            ),
            "",
        ]
    )


if __name__ == "__main__":
    main()
