"""What the trainings share: a seeded, resumable loop with EMA, a cosine schedule, gradient clipping and a logged
loss."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._inductor import config as inductor_config

from muon import Muon


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    """One training stage."""

    num_steps: int
    """Optimiser steps in the whole stage, resumed or not."""
    learning_rate: float
    """Peak rate of AdamW, after `num_warmup_steps`; cosine down to 2 % of it."""
    muon_learning_rate: float
    """Peak rate of Muon, on the same schedule."""
    num_warmup_steps: int = 50
    ema_decay: float = 0.995
    max_grad_norm: float = 1.0
    checkpoint_every: int = 100
    """Steps between two checkpoints; a run that is cut loses at most this many."""
    log_every: int = 25


def clip_psnr(decoded: torch.Tensor, clips: torch.Tensor) -> torch.Tensor:
    """PSNR (dB) of each clip of a batch against the same one of another, [B, C, F, H, W] from -1 to 1."""
    return -10 * ((decoded - clips) / 2).square().mean(dim=(1, 2, 3, 4)).log10()


def avoid_fused_attention(device: torch.device) -> None:
    """On a CPU the fused attention's backward pass took nearly half of a denoiser's step."""
    if device.type == "cpu":
        torch.backends.cuda.enable_flash_sdp(False)
        inductor_config.force_disable_caches = True  # whose keys do not know of this switch


def schedule(step: int, config: LoopConfig) -> float:
    """Share of the peak learning rate."""
    if step < config.num_warmup_steps:
        return (step + 1) / config.num_warmup_steps
    share = (step - config.num_warmup_steps) / max(1, config.num_steps - config.num_warmup_steps)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))


def optimizers(modules: torch.nn.Module, config: LoopConfig, adam_only: tuple[str, ...]) -> list[torch.optim.Optimizer]:
    """Muon for weights that mix many channels with many, AdamW for the rest and for modules named in `adam_only`."""
    matrices, others = [], []
    for name, weight in modules.named_parameters():
        if not weight.requires_grad:
            continue
        is_matrix = (
            weight.dim() >= 2 and weight.shape[0] > 1 and weight[0].numel() > 1 and min(weight.flatten(1).shape) > 8
        )
        matrices.append(weight) if is_matrix and not any(part in name for part in adam_only) else others.append(weight)
    return [
        Muon(matrices, lr=config.muon_learning_rate),
        torch.optim.AdamW(others, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(
    modules: torch.nn.Module,
    loss_at: Callable[[int], torch.Tensor],
    config: LoopConfig,
    checkpoint: Path,
    device: torch.device,
    adam_only: tuple[str, ...] = (),
) -> dict[str, torch.Tensor]:
    """Runs `loss_at(step)` to the end of the stage and returns the EMA weights.

    Randomness belongs to `loss_at`, which derives it from the step, so that a resumed run sees the data of an uncut
    one.
    """
    steppers = optimizers(modules, config, adam_only)
    peaks = [stepper.param_groups[0]["lr"] for stepper in steppers]
    ema = {name: value.detach().clone() for name, value in modules.state_dict().items()}
    first_step, seconds_before = 0, 0.0
    if checkpoint.exists():
        saved = torch.load(checkpoint, map_location=device, weights_only=True)
        modules.load_state_dict(saved["model"])
        for stepper, state in zip(steppers, saved["optimizers"], strict=True):
            stepper.load_state_dict(state)
        ema, first_step, seconds_before = saved["ema"], saved["step"], saved["seconds"]
        print(f"resumed {checkpoint} at step {first_step}", flush=True)
    start, losses = time.monotonic(), []
    for step in range(first_step, config.num_steps):
        for stepper, peak in zip(steppers, peaks, strict=True):
            stepper.param_groups[0]["lr"] = peak * schedule(step, config)
        loss = loss_at(step)
        modules.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(modules.parameters(), config.max_grad_norm)
        for stepper in steppers:
            stepper.step()
        average(ema, modules, min(config.ema_decay, (step + 1) / (step + 10)))
        losses.append(float(loss.detach()))
        seconds, num_done = time.monotonic() - start, step + 1 - first_step
        if (step + 1) % config.log_every == 0:
            left = seconds / num_done * (config.num_steps - step - 1)
            row = {"step": step + 1, "loss": sum(losses) / len(losses), "seconds": round(seconds_before + seconds, 1)}
            log(row | {"seconds_left": round(left)}, checkpoint.with_suffix(".log.jsonl"))
            losses.clear()
        if (step + 1) % config.checkpoint_every == 0 or step + 1 == config.num_steps:
            state = {"model": modules.state_dict(), "optimizers": [stepper.state_dict() for stepper in steppers]}
            state |= {"ema": ema, "step": step + 1, "seconds": seconds_before + seconds}
            torch.save(state, checkpoint.with_suffix(".partial"))
            checkpoint.with_suffix(".partial").replace(checkpoint)
    return ema


@torch.no_grad()
def average(ema: dict[str, torch.Tensor], modules: torch.nn.Module, decay: float) -> None:
    """Moves the average towards the present weights; whole numbers are copied."""
    for name, value in modules.state_dict().items():
        if value.is_floating_point():
            ema[name].lerp_(value, 1 - decay)
        else:
            ema[name].copy_(value)


def log(row: dict[str, float], path: Path) -> None:
    """Appends a row to the log file and shows it."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
