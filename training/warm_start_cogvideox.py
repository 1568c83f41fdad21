"""First weights of a CogVideoX student, copied from its teacher: a `WanTransformer3DModel` of the same width and heads.

Patches, self-attention, feed-forward, modulation by time and the last layer have a counterpart. A cross-attention has
one in a block of its own, whose joint attention has to learn that latents are not to be attended.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from diffusers import CogVideoXTransformer3DModel, WanTransformer3DModel
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

from counterparts import (
    Plan,
    Words,
    close,
    copy_attention,
    copy_cross_attention,
    copy_last_layer,
    copy_linear,
    fit,
    fit_linear,
    last_modulation,
    slowest_channels,
    times,
)

FIT_STEPS, FIT_RATE = 1500, 3e-3


def matching_channels(teacher_sizes: Sequence[int], sizes: Sequence[int], theta: float = 10000.0) -> torch.Tensor:
    """Which of the teacher's channels of a head a student's channels take, so that each turns with frame, row or
    column about as fast as before. What is left over turns slowly on both sides."""

    def pairs(of: Sequence[int]) -> list[tuple[int, float]]:
        return [(axis, theta ** (-2 * i / size)) for axis, size in enumerate(of) for i in range(size // 2)]

    free = dict(enumerate(pairs(teacher_sizes)))
    wanted = pairs(sizes)
    chosen: dict[int, int] = {}
    for place in sorted(range(len(wanted)), key=lambda place: -wanted[place][1]):
        axis, _ = wanted[place]
        same = [old for old, (old_axis, _) in free.items() if old_axis == axis]
        if same:
            chosen[place] = max(same, key=lambda old: free[old][1])
            del free[chosen[place]]
    for place in range(len(wanted)):
        if place not in chosen:
            chosen[place] = free.popitem()[0]
    return torch.tensor([2 * chosen[place] + part for place in range(len(wanted)) for part in (0, 1)])


@torch.no_grad()
def copy_to_cogvideox(
    student: CogVideoXTransformer3DModel, teacher: WanTransformer3DModel, plan: Plan, sigmas: torch.Tensor, words: Words
) -> None:
    config = student.config
    size, width = config.attention_head_dim, teacher.proj_out.in_features
    third = size // 8 * 3
    rope = teacher.rope
    in_head = matching_channels((rope.t_dim, rope.h_dim, rope.w_dim), (size - 2 * third, third, third))
    slowest = slowest_channels((size - 2 * third, third, third))
    copy_linear(student.patch_embed.proj, teacher.patch_embedding)
    copy_last_layer(student.proj_out, teacher.proj_out, config.out_channels)
    ours, theirs = words.ours[words.attended], words.theirs[words.attended]
    fit_linear(student.patch_embed.text_proj, ours, theirs, 0.0, slice(None))
    text = torch.nn.functional.layer_norm(student.patch_embed.text_proj(ours), (width,))
    embedded, shared = times(teacher, sigmas * 1000)
    shift, scale = last_modulation(teacher, embedded)
    fitted = fit_times(student, torch.cat([shared, shift, scale], dim=1))
    copy_linear(student.norm_out.linear, fitted, slice(6 * width, None))
    for block, (index, part) in zip(student.transformer_blocks, plan, strict=True):
        copy_modulations(block, teacher.blocks[index], fitted)
        copy_feed_forward(block, teacher.blocks[index], silent=part == "self")
        own = block.norm1.linear.bias.view(6, width)
        if part == "rest":
            norm, attention = teacher.blocks[index].norm2, teacher.blocks[index].attn2
            block.norm1.linear.weight.zero_()
            own[:3] = torch.stack([norm.bias, norm.weight - 1, torch.ones(width)])
            copy_cross_attention(block.attn1, attention, theirs, text, slowest)
        else:
            attention = teacher.blocks[index].attn1
            copy_attention(block.attn1, attention, in_head)
        copy_linear(block.attn1.to_out[0], attention.to_out[0])
        if part == "self":
            own[4] = -1.0  # all words look alike to an attention that has no use for them


def copy_modulations(block: CogVideoXBlock, source: WanTransformerBlock, fitted: torch.nn.Linear) -> None:
    """Those of the latents. Text goes through the same weights, which are made for the small gates of latents: its own
    begin closed."""
    half = block.norm1.linear.out_features // 2
    table = source.scale_shift_table.flatten().split(half)
    for norm, rows, own in zip((block.norm1, block.norm2), (slice(0, half), slice(half, 2 * half)), table, strict=True):
        close(norm.linear)
        norm.linear.weight[:half] = fitted.weight[rows]
        norm.linear.bias[:half] = fitted.bias[rows] + own


def copy_feed_forward(block: CogVideoXBlock, source: WanTransformerBlock, silent: bool) -> None:
    """The student's is wider, and what is new, or all of it, starts silent."""
    first, second = block.ff.net[0].proj, block.ff.net[2]
    close(second)
    if not silent:
        known = source.ffn.net[0].proj.out_features
        first.weight[:known], first.bias[:known] = source.ffn.net[0].proj.weight, source.ffn.net[0].proj.bias
        second.weight[:, :known] = source.ffn.net[2].weight
        second.bias.copy_(source.ffn.net[2].bias)


def fit_times(student: CogVideoXTransformer3DModel, target: torch.Tensor) -> torch.nn.Linear:
    """Trains the student's embedding of time, and a linear layer behind it that is returned, on the teacher's
    modulations at the student's timesteps: `target`, [T, any number]."""
    linear = torch.nn.Linear(student.config.time_embed_dim, target.shape[1])
    inputs = student.time_proj(torch.arange(len(target)))

    def loss_of() -> torch.Tensor:
        return (linear(torch.nn.functional.silu(student.time_embedding(inputs))) - target).square().mean()

    loss = fit([*student.time_embedding.parameters(), *linear.parameters()], loss_of, FIT_STEPS, FIT_RATE)
    print(f"modulations by time: {loss / float(target.var(0).mean()):.4f} of their variance missed", flush=True)
    return linear.requires_grad_(False)
