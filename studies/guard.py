"""make guard: what a plan is worth whose profile was made at another guidance scale.

    python -m studies.guard --out docs/results

Calibrates `shapes-wan` at two guidance scales on training captions; then denoises held-out ones at the second: by plans
for 2x from either profile, by plans for other speed-ups from the matching one, which make the line that the first is
held against, and by `step` on fixed cadences. Speed-ups are ideal ones, by the work left out; quality is the PSNR of
the clips.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from mixcache import generation
from mixcache.bench.methods import Method, cadence, policy_method
from mixcache.bench.records import best_at
from mixcache.calibration import CalibrationConfig, built_in_prompts, calibrate
from mixcache.hosts.diffusers.attachment import enable
from mixcache.metrics import video_psnr
from mixcache.planning.profiles import Profile
from mixcache.report.markdown import table
from mixcache.store import write_json
from mixcache.zoo import call_defaults, load, world

SCALES = (3.0, 7.0)
"""Guidance of the profile that does not match, and of the one that does."""
SPEEDUP, OTHER_SPEEDUPS = 2.0, (1.4, 1.6, 1.8, 2.3)
PERIODS = (1.5, 1.75, 2.0, 2.25, 2.5)
BAR_DB = 1.0
MOST_DB = 100.0
"""PSNR beyond which clips count as alike."""
SEED = 9500


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--work", type=Path, default=Path("build/guard"), help="for the profiles; a cut run goes on")
    parser.add_argument("--num-prompts", type=int, default=8)
    parser.add_argument("--num-calibration-prompts", type=int, default=2)
    parser.add_argument("--num-steps", type=int, default=50)
    args = parser.parse_args(arguments)
    for folder in (args.out, args.work):
        folder.mkdir(parents=True, exist_ok=True)
    pipeline = load()
    pipeline.set_progress_bar_config(disable=True)
    defaults = call_defaults() | {"num_inference_steps": args.num_steps}
    prompts = tuple(built_in_prompts(args.num_calibration_prompts))
    profiles = [profile_at(scale, pipeline, defaults, prompts, args.work) for scale in SCALES]
    options = f"--num-prompts {args.num_prompts} --num-calibration-prompts {len(prompts)} --num-steps {args.num_steps}"
    result = {
        "command": f"python -m studies.guard {options}",
        "versions": generation.versions(),
        "machine": generation.machine(pipeline._execution_device),
        **measure(pipeline, defaults, world.held_out_captions(args.num_prompts, seed=1), *profiles),
    }
    write_json(args.out / "guard.json", result)
    Console(soft_wrap=True).print(table(result["rows"]) + "\n" + "\n".join(told(result)))


def profile_at(
    scale: float, pipeline: Any, defaults: Mapping[str, Any], prompts: tuple[str, ...], work: Path
) -> Profile:
    """The profile of a guidance scale, from `work` where it is there and of these weights, steps and captions."""
    config = CalibrationConfig(
        model="shapes-wan", prompts=prompts, arguments={**defaults, "guidance_scale": scale}, num_impact_steps=1
    )
    path = work / f"{scale:g}.json"
    if path.exists():
        profile = Profile.load(path)
        is_of_case = (
            len(profile.outputs) == defaults["num_inference_steps"] and tuple(profile.provenance["prompts"]) == prompts
        )
        if is_of_case and profile.misfit(pipeline.transformer) is None:
            return profile
    return calibrate(pipeline, config, path)


def measure(
    pipeline: Any, defaults: Mapping[str, Any], prompts: Sequence[str], other: Profile, matching: Profile
) -> dict[str, Any]:
    """Rows of all methods, and what follows for the plan of the `other` profile."""
    arguments = {**defaults, "guidance_scale": SCALES[1]}

    def clip(index: int) -> Any:
        return generation.generate(pipeline, prompts[index], seed=SEED + index, **arguments).clip

    plain = [clip(index) for index in range(len(prompts))]

    def row(name: str, method: Method, **more: Any) -> dict[str, Any]:
        """Means over the captions; `guarded` counts the steps of a clip that the guard had computed. A clip that is the
        plain one counts as `MOST_DB`."""
        psnrs, ideals, guarded = [], [], []
        for index, reference in enumerate(plain):
            with enable(pipeline, str(method.policy), **{**method.settings, **more}) as handle:
                psnrs.append(min(MOST_DB, video_psnr(clip(index), reference)))
            ideals.append(handle.summary().ideal_speedup)
            guarded.append(sum(entry.reason.startswith("guard") for entry in handle.trace))
        means = {"ideal": fmean(ideals), "psnr_db": fmean(psnrs), "lowest": min(psnrs), "guarded": fmean(guarded)}
        return {"profile": name, "method": method.name, **means}

    planned = {speedup: policy_method("planned", speedup=speedup) for speedup in (SPEEDUP, *OTHER_SPEEDUPS)}
    first = row(f"guidance {SCALES[0]:g}", planned[SPEEDUP], profile=other)
    matched = [row(f"guidance {SCALES[1]:g}", method, profile=matching) for method in planned.values()]
    fixed = [row("none", cadence("step", period, predictor)) for predictor in ("reuse", "line") for period in PERIODS]

    def there(rows: Sequence[Mapping[str, Any]]) -> float | None:
        return best_at([(row["ideal"], row["psnr_db"]) for row in rows], first["ideal"])

    return {
        "rows": [first, *matched, *fixed],
        "psnr_db": first["psnr_db"],
        "matching_psnr_db": there(matched),
        "cadence_psnr_db": there(fixed),
    }


def told(result: Mapping[str, Any]) -> list[str]:
    """One line for each bar."""
    mine, ideal = result["psnr_db"], result["rows"][0]["ideal"]
    head = f"the plan of the other profile, ideal {ideal:.2f}: {mine:.1f} dB"
    rivals = (
        ("the matching profile", result["matching_psnr_db"], BAR_DB),
        ("the best cadence", result["cadence_psnr_db"], 0.0),
    )
    lines = []
    for name, value, may_be_lost in rivals:
        if value is None:
            lines.append(f"- not told: {head}; {name} is not that fast")
        else:
            met = "yes" if mine >= value - may_be_lost else "no"
            lines.append(f"- {met}: {head}; {name} there: {value:.1f} dB, of which {may_be_lost:g} may be lost")
    return lines


if __name__ == "__main__":
    main()
