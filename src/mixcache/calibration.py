"""Impacts by Gaussian perturbation: how much a relative disturbance of what a granularity predicts changes the final
clip.

    python -m mixcache.calibration --out src/mixcache/profiles/shapes-wan.json

For one step of one trajectory, one quantity q (v, d, or the span residual r) is replaced by
q + strength * rms(q) * noise, with the same noise in both branches: their errors are alike in a cached step too, and
guidance would multiply the difference of two. Everything after runs in full. Then

    I = rms(change of the final latents) / rms(final latents) / strength

averaged over calibration prompts and steps. The paper names the analysis; strength, steps and norm are ours.
"""

from __future__ import annotations

import argparse
import datetime
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch

from mixcache import generation
from mixcache.attachment import Handle
from mixcache.calls import CONDITIONAL, UNCONDITIONAL, CallInfo, SpanMode
from mixcache.config import MixCacheConfig
from mixcache.decision import CACHED, Granularity
from mixcache.engine import Compute, Engine, Streams
from mixcache.models import row_for
from mixcache.policies import MixCache
from mixcache.profiles import FORMAT, fingerprint
from mixcache.zoo import BUILT_IN, call_defaults, load, world

logger = logging.getLogger("mixcache")
CALIBRATION_SEED = 4242
STRENGTH = 0.1


class PerturbingEngine(Engine):
    """Computes everything, and disturbs one quantity in one step."""

    target: Granularity | None = None
    step: int = 0
    strength: float = STRENGTH
    noise_seed: int = 0

    def call(self, info: CallInfo, compute: Compute, compute_conditional: Compute | None = None) -> torch.Tensor:
        """The computed output, disturbed if this is the step."""
        is_step = info.step == self.step
        self.span_mode = SpanMode.RECORD if is_step and self.target is Granularity.BLOCK else SpanMode.RUN
        output = compute()
        if info.branch == CONDITIONAL:
            self._conditional = output
        if is_step and self.target is Granularity.STEP:
            return output + self._noise(output)
        if is_step and self.target is Granularity.CFG and info.branch == UNCONDITIONAL:
            return output + self._noise(output - self._conditional)
        return output

    def span_ends(self, streams: Streams) -> Streams:
        """What comes out of the span, with its residuals disturbed if this is the step."""
        if self.span_mode is not SpanMode.RECORD:
            return streams
        return tuple(end + self._noise(end - begin) for begin, end in zip(self._span_input, streams, strict=True))

    def _noise(self, quantity: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.noise_seed)
        noise = torch.randn(quantity.shape, generator=generator).to(quantity)
        return self.strength * quantity.float().square().mean().sqrt().to(quantity) * noise


def measure_impacts(
    pipeline: Any, prompts: Sequence[str], steps: Sequence[int], arguments: dict[str, Any], seed: int = CALIBRATION_SEED
) -> dict[str, dict[int, float]]:
    """Impact of each granularity at each of `steps`, averaged over `prompts`; `arguments` go to the pipeline's call."""
    transformer = pipeline.transformer
    config = MixCacheConfig(policy=MixCache())
    handle = Handle(pipeline, config, row_for(transformer, pipeline), PerturbingEngine)
    engine = cast(PerturbingEngine, handle.engine)
    found: dict[str, dict[int, list[float]]] = {g.value: {step: [] for step in steps} for g in CACHED}

    def final_latents(prompt: str, prompt_seed: int) -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(prompt_seed)
        return pipeline(prompt, generator=generator, output_type="latent", **arguments).frames.float()

    try:
        handle._attach()
        with generation.watched_loop(pipeline):
            for index, prompt in enumerate(prompts):
                engine.target, engine.noise_seed = None, seed + 1000 * index
                plain = final_latents(prompt, seed + index)
                for granularity in CACHED:
                    for step in steps:
                        engine.target, engine.step = granularity, step
                        change = final_latents(prompt, seed + index) - plain
                        impact = (change.square().mean() / plain.square().mean()).sqrt().item() / engine.strength
                        found[granularity.value][step].append(impact)
                        logger.info("prompt %d, %s at step %d: %.4f", index, granularity, step, impact)
    finally:
        handle.disable()
    return {name: {step: fmean(values) for step, values in rows.items()} for name, rows in found.items()}


def build_profile(model: str, num_prompts: int, num_steps_measured: int) -> dict[str, Any]:
    """The profile of a built-in model: impacts, and all that is needed to make it again."""
    pipeline, arguments = load(model), call_defaults(model)
    num_steps = arguments["num_inference_steps"]
    stride = num_steps / num_steps_measured
    steps = [int((k + 0.5) * stride) for k in range(num_steps_measured)]
    # captions that the model was trained on: the held-out ones stay for the benchmarks
    prompts = [scene.caption for scene in world.sample_scenes(num_prompts, CALIBRATION_SEED, held_out=False)]
    by_step = measure_impacts(pipeline, prompts, steps, arguments)
    return {
        "format": FORMAT,
        "model": model,
        "transformer_class": type(pipeline.transformer).__name__,
        "transformer_fingerprint": fingerprint(pipeline.transformer),
        "impacts": {name: fmean(values.values()) for name, values in by_step.items()},
        "impacts_by_step": by_step,
        "provenance": {
            "command": f"python -m mixcache.calibration --model {model} --num-prompts {num_prompts} "
            f"--num-steps-measured {num_steps_measured}",
            "method": "Gaussian perturbation of one quantity in one step",
            "strength": STRENGTH,
            "seed": CALIBRATION_SEED,
            "prompts": prompts,
            "scheduler": type(pipeline.scheduler).__name__,
            "arguments": arguments,
            "versions": generation.versions(),
            "machine": generation.machine(pipeline._execution_device),
            "date": datetime.date.today().isoformat(),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=BUILT_IN[0], choices=BUILT_IN)
    parser.add_argument("--num-prompts", type=int, default=4)
    parser.add_argument("--num-steps-measured", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    profile = build_profile(args.model, args.num_prompts, args.num_steps_measured)
    args.out.write_text(json.dumps(profile, indent=2) + "\n")
    logger.info("impacts: %s", profile["impacts"])


if __name__ == "__main__":
    main()
