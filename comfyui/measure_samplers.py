"""Whether cached steps that are taken again are better, under each sampler of one call a step.

    build/comfyui/venv/bin/python comfyui/measure_samplers.py --captions 4 --out docs/results/comfyui-samplers.json

The trained model, by default at half its size (48 pixels, 5 frames), training captions, 24 steps, guidance 7, one step
in two cached: PSNR of the latents against the plain ones of the same seed, and time against the share of calls. Or at
the model's own size, by any policy, with a file for each setting:

    build/comfyui/venv/bin/python comfyui/measure_samplers.py --captions 24 --side 96 --frames 17 --steps 20 \
        --policy hold --setting 0.6 --samplers euler,dpmpp_2m,res_multistep,gradient_estimation \
        --out docs/results/comfyui-samplers-hold-0.6.json

and so for 0.9, and for `--policy every_nth --setting 2 --captions 8` (comfyui-samplers-every-2.json). A caption that is
drawn twice counts once: 23 of 24 captions, 7 of 8.

With --disturb: how far noise of a thousandth in one output moves the latents at the end, thousandths, for some steps.
With --in-double: the samplers of UniPC too with their own coefficients in double precision, the model asked as ever.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parent / "tests"), str(Path(__file__).parent)]
from boot import boot  # noqa: E402

boot()
arguments, sys.argv = sys.argv, ["main.py", "--cpu"]
import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402

sys.argv = arguments
import torch  # noqa: E402
from comfyui_mixcache import report  # noqa: E402
from comfyui_mixcache.attachment import attach, attachment_of  # noqa: E402
from comfyui_mixcache.samplers import SAMPLERS, Treatment, name_of  # noqa: E402
from comfyui_mixcache.settings import Settings  # noqa: E402
from tiny import TinyWan  # noqa: E402

from mixcache.store import write_whole  # noqa: E402
from mixcache.zoo import world  # noqa: E402

CFG = 7.0
IN_DOUBLE = " in double"


@contextlib.contextmanager
def default_of(dtype: torch.dtype) -> Iterator[None]:
    """A type of numbers that is not said otherwise."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def sampler_object(sampler: str) -> Any:
    """By its name in ComfyUI; where that ends in `IN_DOUBLE`, one that reckons in double precision."""
    found = comfy.samplers.sampler_object(sampler.removesuffix(IN_DOUBLE))
    if not sampler.endswith(IN_DOUBLE):
        return found
    single = found.sampler_function

    def double(ask: Any, x: torch.Tensor, sigmas: torch.Tensor, **more: Any) -> torch.Tensor:
        def asked(x: torch.Tensor, sigma: torch.Tensor, **given: Any) -> torch.Tensor:
            with default_of(torch.float32):
                return ask(x.float(), sigma.float(), **given)

        with default_of(torch.float64):
            return single(asked, x.double(), sigmas.double(), **more).float()

    double.__name__ = single.__name__
    return comfy.samplers.KSAMPLER(double)


def function_name(sampler: str) -> str:
    return name_of(sampler_object(sampler))


def sample(model: Any, sampler: str, given: tuple[Any, ...], seed: int, steps: int = 24) -> tuple[torch.Tensor, float]:
    """Latents, and the seconds that they took of this process."""
    _, positive, negative, empty = given
    latents = empty["samples"]
    noise = comfy.sample.prepare_noise(latents, seed)
    begun = time.process_time()
    with torch.inference_mode():
        name = sampler.removesuffix(IN_DOUBLE)
        sigmas = comfy.samplers.KSampler(model, steps, latents.device, name, "simple").sigmas
        how = (CFG, sampler_object(sampler), sigmas, positive, negative, latents)
        clip = comfy.sample.sample_custom(model, noise, *how, seed=seed, disable_pbar=True)
    return clip, time.process_time() - begun


def psnr(clip: torch.Tensor, plain: torch.Tensor) -> float:
    error = float((clip - plain).double().square().mean())
    return -10 * math.log10(max(error, 1e-20) / float(plain.max() - plain.min()) ** 2)


def table(runs: dict[str, dict[str, dict[str, float]]]) -> str:
    """Markdown, a row for each sampler."""
    lines = ["| sampler | cached: lowest / median / mean | corrected | treatment |", f"|{' --- |' * 4}"]
    for sampler, clips in runs.items():
        cells = []
        for name in ("cached", "corrected"):
            decibels = [clip[name] for clip in clips.values()]
            speedup = 1 / statistics.mean(clip[f"{name} share"] for clip in clips.values())
            figures = (min(decibels), statistics.median(decibels), statistics.mean(decibels))
            cells.append(" / ".join(f"{figure:.1f}" for figure in figures) + f" at {speedup:.2f}x")
        lines.append(f"| `{sampler}`, {len(clips)} | {' | '.join(cells)} | {SAMPLERS[function_name(sampler)].value} |")
    return "\n".join(lines)


def disturb(names: list[str], inputs: tuple[Any, ...]) -> None:
    """Prints a row for each sampler."""
    for name in names:
        plain, _ = sample(inputs[0], name, inputs, 0)
        figures = []
        for step in (3, 8, 14, 19):
            clip, _ = sample(disturbed(inputs[0], step), name, inputs, 0)
            figures.append(1000 * float((clip - plain).norm() / plain.norm()))
        print(name, " ".join(f"{figure:.3f}" for figure in figures), flush=True)


def disturbed(model: Any, step: int) -> Any:
    """A clone of which one guided velocity has noise on it."""
    clone, calls = model.clone(), iter(range(10_000))

    def predict(executor: Any, x: Any, sigma: Any, *rest: Any) -> Any:
        denoised = executor(x, sigma, *rest)
        if next(calls) != step:
            return denoised
        velocity = (x - denoised) / sigma[0]
        noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
        return denoised - sigma[0] * 1e-3 * velocity.square().mean().sqrt() * noise

    clone.add_wrapper_with_key("predict_noise", "disturbed", predict)
    return clone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=4)
    parser.add_argument("--side", type=int, default=48)
    parser.add_argument("--frames", type=int, default=5)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--policy", default="every_nth")
    parser.add_argument("--setting", type=float, default=2.0, help="of the policy, as the node takes it")
    parser.add_argument("--disturb", action="store_true")
    parser.add_argument("--in-double", action="store_true")
    parser.add_argument("--samplers", default="", help="names with commas between; all where none is given")
    parser.add_argument("--out", type=Path, help="goes on with what is in it")
    given = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    torch.set_num_threads(1)
    treatments = dict(SAMPLERS)
    names = [name for name in comfy.samplers.SAMPLER_NAMES if "gpu" not in name and "cfg_pp" not in name]
    names = [name for name in names if SAMPLERS[function_name(name)] is not Treatment.PASSED]
    names = [name for name in names if name in given.samplers.split(",") or not given.samplers]
    names += [name + IN_DOUBLE for name in names if name.startswith("uni_pc") and given.in_double]
    if given.disturb:
        return disturb(names, TinyWan().load("a large red circle moving left on a plain white background", "", 48, 5))
    about = {name: getattr(given, name) for name in ("side", "frames", "steps", "policy", "setting")} | {"cfg": CFG}
    kept = json.loads(given.out.read_text()) if given.out.is_file() else {"about": about, "runs": {}}
    if kept["about"] != about:
        raise SystemExit(f"{given.out} is of {kept['about']}: give another --out")
    runs = kept["runs"]
    for seed, scene in enumerate(world.sample_scenes(given.captions, seed=5, held_out=False)):
        inputs = TinyWan().load(scene.caption, "", given.side, given.frames)
        for name in names:
            if scene.caption in runs.setdefault(name, {}):
                continue
            plain, plain_seconds = sample(inputs[0], name, inputs, seed, given.steps)
            figures = {}
            SAMPLERS[function_name(name)] = Treatment.CORRECTED
            for way, correct in (("cached", False), ("corrected", True)):
                model = attach(inputs[0], Settings(policy=given.policy, setting=given.setting, correct=correct))
                clip, seconds = sample(model, name, inputs, seed, given.steps)
                share = report.share_computed(attachment_of(model).runs[-1])
                figures |= {way: psnr(clip, plain), f"{way} share": share, f"{way} time": seconds / plain_seconds}
            SAMPLERS.update(treatments)
            runs[name][scene.caption] = figures
            print(scene.caption, name, figures, flush=True)
            write_whole(given.out, json.dumps(kept, indent=1) + "\n")
    print(table(runs))


if __name__ == "__main__":
    main()
