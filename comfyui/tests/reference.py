"""The definition of a cached clip, without ComfyUI and without the engine: diffusers' transformer in a loop of Euler.

cached        the last computed velocity again, of each branch
corrected     where a computed step follows on cached ones: back to where they began, these again with the line
              through both computed ones, and then that step
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from workflows import CAPTION

SHIFT, TRAINED_STEPS = 20.0, 1000


def sigmas(num_steps: int) -> list[float]:
    """Of the scheduler `simple`: every so many of the levels that the model was trained at."""
    times = [(index + 1) / TRAINED_STEPS for index in range(TRAINED_STEPS)]
    levels = [SHIFT * time / (1 + (SHIFT - 1) * time) for time in times]
    return [levels[-1 - int(step * TRAINED_STEPS / num_steps)] for step in range(num_steps)] + [0.0]


@torch.no_grad()
def denoised(is_cached: Sequence[bool], *, correct: bool, cfg: float = 5.0, seed: int = 3) -> torch.Tensor:
    """The latents of the tests' caption at the size of `workflows.tiny`."""
    from tiny import pipeline

    from mixcache.zoo.world import MAX_SEQUENCE_LENGTH

    pipe, levels = pipeline(), sigmas(len(is_cached))
    texts = pipe.encode_prompt(CAPTION, "", max_sequence_length=MAX_SEQUENCE_LENGTH)
    shape = (
        1,
        pipe.transformer.config.in_channels,
        2,
        48 // pipe.vae_scale_factor_spatial,
        48 // pipe.vae_scale_factor_spatial,
    )
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))

    def velocity(step: int) -> torch.Tensor:
        timestep = torch.tensor([1000 * levels[step]])
        cond, uncond = (
            pipe.transformer(hidden_states=latents, timestep=timestep, encoder_hidden_states=text).sample
            for text in texts
        )
        return uncond + cfg * (cond - uncond)

    last = torch.zeros(shape)
    began, begun = 0, latents
    for step, cached in enumerate(is_cached):
        if not cached:
            before, last = last, velocity(step)
            if correct and step - began > 1:
                latents = begun
                for again in range(began + 1, step):
                    share = (levels[began] - levels[again]) / (levels[began] - levels[step])
                    latents = latents + (levels[again + 1] - levels[again]) * torch.lerp(before, last, share)
            began, begun = step, latents + (levels[step + 1] - levels[step]) * last
            latents = begun
        else:
            latents = latents + (levels[step + 1] - levels[step]) * last
    return latents
