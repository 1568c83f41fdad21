"""First weights of a student's denoiser, copied from its teacher: a `WanTransformer3DModel` of the same width, heads
and number of blocks.

Patches, self-attention, feed-forward, modulation by time and the last layer have a counterpart in both students. The
cross-attention has none: text reaches a student through its joint attention, which has to be learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import torch
from diffusers import CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

MAX_RATIO = 3.0
"""Bound of the factors that stand in for a modulation which a single block does not have."""
FIT_STEPS, FIT_RATE = 1500, 3e-3


def copy_linear(to: torch.nn.Module, source: torch.nn.Module, rows: slice | torch.Tensor = slice(None)) -> None:
    to.weight.copy_(source.weight[rows].reshape(to.weight.shape))
    to.bias.copy_(source.bias[rows])


def copy_last_layer(to: torch.nn.Linear, source: torch.nn.Linear, channels: int) -> None:
    """Wan has a patch's numbers with the channel last, the others with the channel first."""
    to.weight.copy_(source.weight.unflatten(0, (-1, channels)).transpose(0, 1).flatten(0, 1))
    to.bias.copy_(source.bias.unflatten(0, (-1, channels)).T.flatten())


def times(teacher: WanTransformer3DModel, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's embeddings of timesteps, [T, width], and the modulations that its blocks share, [T, 6 * width]."""
    embedder = teacher.condition_embedder
    embedded = embedder.time_embedder(embedder.timesteps_proj(timesteps).to(embedder.time_proj.weight.dtype))
    return embedded, embedder.time_proj(embedder.act_fn(embedded))


def last_modulation(teacher: WanTransformer3DModel, embedded: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Shift and scale, each [T, width], before the teacher's last layer."""
    shift, scale = (teacher.scale_shift_table + embedded[:, None]).unbind(1)
    return shift, scale


def copy_attention(to: torch.nn.Module, source: torch.nn.Module, in_head: torch.Tensor | None = None) -> None:
    """Queries, keys and values; `in_head` says which of a head's channels queries and keys take.

    A student normalises every head by itself and weighs all heads alike: it gets the mean of the norms' weights.
    """
    size = len(source.norm_q.weight) // to.heads
    in_head = torch.arange(size) if in_head is None else in_head
    rows = (torch.arange(to.heads)[:, None] * size + in_head).flatten()
    for part, its, norm, its_norm in (
        (to.to_q, source.to_q, to.norm_q, source.norm_q),
        (to.to_k, source.to_k, to.norm_k, source.norm_k),
    ):
        copy_linear(part, its, rows)
        norm.weight.copy_(its_norm.weight.view(to.heads, size).mean(0)[in_head])
    copy_linear(to.to_v, source.to_v)


def open_gates(linear: torch.nn.Linear, chunks: int, gates: Sequence[int]) -> None:
    """Begins with modulations by nothing, of which those at the places `gates` of `chunks` let everything through."""
    linear.weight.zero_()
    linear.bias.zero_()
    linear.bias.view(chunks, -1)[list(gates)] = 1.0


def copy_dual_block(
    block: HunyuanVideoTransformerBlock, source: WanTransformerBlock, time_proj: torch.nn.Linear
) -> None:
    """The stream of the latents; that of the text keeps its first weights, with open gates."""
    open_gates(block.norm1_context.linear, 6, (2, 5))
    block.norm1.linear.weight.copy_(time_proj.weight)
    block.norm1.linear.bias.copy_(time_proj.bias + source.scale_shift_table.flatten())
    copy_attention(block.attn, source.attn1)
    copy_linear(block.attn.to_out[0], source.attn1.to_out[0])
    copy_linear(block.ff.net[0].proj, source.ffn.net[0].proj)
    copy_linear(block.ff.net[2], source.ffn.net[2])


def copy_single_block(
    block: HunyuanVideoSingleTransformerBlock,
    source: WanTransformerBlock,
    time_proj: torch.nn.Linear,
    shared: torch.Tensor,
) -> None:
    """A single block has one modulation where the teacher has one for attention and one for the feed-forward: the
    second is worked into the weights at its mean over time, of the modulations `shared`, [T, 6 * width]."""
    width = block.proj_mlp.in_features
    bias = time_proj.bias + source.scale_shift_table.flatten()
    block.norm.linear.weight.copy_(time_proj.weight[: 3 * width])
    block.norm.linear.bias.copy_(bias[: 3 * width])
    mean = shared.mean(0) + source.scale_shift_table.flatten()
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = mean.view(6, width)
    ratio = ((1 + mlp_scale) / (1 + scale)).clamp(-MAX_RATIO, MAX_RATIO)
    gate_ratio = (mlp_gate / gate).clamp(-MAX_RATIO, MAX_RATIO)
    copy_attention(block.attn, source.attn1)
    first, second, out = source.ffn.net[0].proj, source.ffn.net[2], source.attn1.to_out[0]
    block.proj_mlp.weight.copy_(first.weight * ratio)
    block.proj_mlp.bias.copy_(first.bias + first.weight @ (mlp_shift - ratio * shift))
    block.proj_out.weight.copy_(torch.cat([out.weight, gate_ratio[:, None] * second.weight], dim=1))
    block.proj_out.bias.copy_(out.bias + gate_ratio * second.bias)


@singledispatch
def copy_teacher(student: torch.nn.Module, teacher: WanTransformer3DModel, sigmas: torch.Tensor) -> None:
    """Sets the student's first weights; `sigmas` are the teacher's noise levels at the student's 1,000 timesteps."""
    raise TypeError(f"no counterparts of the teacher's weights are known in {type(student).__name__}")


@copy_teacher.register
@torch.no_grad()
def copy_to_hunyuan(
    student: HunyuanVideoTransformer3DModel, teacher: WanTransformer3DModel, sigmas: torch.Tensor
) -> None:
    source, time = teacher.condition_embedder, student.time_text_embed
    copy_linear(student.x_embedder.proj, teacher.patch_embedding)
    copy_last_layer(student.proj_out, teacher.proj_out, student.config.out_channels)
    # The teacher has half as many frequencies, every second one of the student's.
    time.timestep_embedder.linear_1.weight.zero_()
    time.timestep_embedder.linear_1.weight[:, ::2] = source.time_embedder.linear_1.weight
    time.timestep_embedder.linear_1.bias.copy_(source.time_embedder.linear_1.bias)
    copy_linear(time.timestep_embedder.linear_2, source.time_embedder.linear_2)
    for silent in (time.guidance_embedder.linear_2, time.text_embedder.linear_2):
        silent.weight.zero_()
        silent.bias.zero_()
    for refiner in student.context_embedder.token_refiner.refiner_blocks:
        open_gates(refiner.norm_out.linear, 2, (0, 1))
    embedded, shared = times(teacher, sigmas * 1000)
    shift, scale = last_modulation(teacher, embedded)
    inputs = torch.cat([torch.nn.functional.silu(embedded), torch.ones(len(embedded), 1)], dim=1)
    ridge = 1e-3 * torch.eye(inputs.shape[1])
    solution = torch.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ torch.cat([scale, shift], dim=1))
    student.norm_out.linear.weight.copy_(solution[:-1].T)
    student.norm_out.linear.bias.copy_(solution[-1])
    duals = len(student.transformer_blocks)
    for block, origin in zip(student.transformer_blocks, teacher.blocks[:duals], strict=True):
        copy_dual_block(block, origin, source.time_proj)
    for block, origin in zip(student.single_transformer_blocks, teacher.blocks[duals:], strict=True):
        copy_single_block(block, origin, source.time_proj, shared)


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


@copy_teacher.register
@torch.no_grad()
def copy_to_cogvideox(
    student: CogVideoXTransformer3DModel, teacher: WanTransformer3DModel, sigmas: torch.Tensor
) -> None:
    config = student.config
    size, width = config.attention_head_dim, teacher.proj_out.in_features
    third = size // 8 * 3
    rope = teacher.rope
    in_head = matching_channels((rope.t_dim, rope.h_dim, rope.w_dim), (size - 2 * third, third, third))
    copy_linear(student.patch_embed.proj, teacher.patch_embedding)
    copy_last_layer(student.proj_out, teacher.proj_out, config.out_channels)
    embedded, shared = times(teacher, sigmas * 1000)
    shift, scale = last_modulation(teacher, embedded)
    fitted = fit_times(student, torch.cat([shared, shift, scale], dim=1))
    copy_linear(student.norm_out.linear, fitted, slice(6 * width, None))
    for block, source in zip(student.transformer_blocks, teacher.blocks, strict=True):
        table = source.scale_shift_table.flatten().unflatten(0, (2, 3 * width))
        for norm, rows, own in zip(
            (block.norm1, block.norm2), (slice(0, 3 * width), slice(3 * width, 6 * width)), table, strict=True
        ):
            # text goes through the same weights, which are made for the small gates of latents: its own begin closed
            norm.linear.weight.zero_()
            norm.linear.bias.zero_()
            norm.linear.weight[: 3 * width] = fitted.weight[rows]
            norm.linear.bias[: 3 * width] = fitted.bias[rows] + own
        copy_attention(block.attn1, source.attn1, in_head)
        copy_linear(block.attn1.to_out[0], source.attn1.to_out[0])
        known = source.ffn.net[0].proj.out_features  # the student's feed-forward is wider; what is new starts silent
        first, second = block.ff.net[0].proj, block.ff.net[2]
        first.weight[:known], first.bias[:known] = source.ffn.net[0].proj.weight, source.ffn.net[0].proj.bias
        second.weight.zero_()
        second.weight[:, :known] = source.ffn.net[2].weight
        second.bias.copy_(source.ffn.net[2].bias)


@torch.enable_grad()
def fit_times(student: CogVideoXTransformer3DModel, modulations: torch.Tensor) -> torch.nn.Linear:
    """Trains the student's embedding of time, and a linear layer behind it that is returned, on the teacher's
    `modulations` at the student's timesteps, [T, any number]."""
    target = modulations.detach()
    student.time_embedding.requires_grad_(True)
    linear = torch.nn.Linear(student.config.time_embed_dim, target.shape[1])
    inputs = student.time_proj(torch.arange(len(target))).detach()
    stepper = torch.optim.Adam([*student.time_embedding.parameters(), *linear.parameters()], lr=FIT_RATE)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, FIT_STEPS)
    for _ in range(FIT_STEPS):
        missed = linear(torch.nn.functional.silu(student.time_embedding(inputs))) - target
        loss = missed.square().mean()
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        plan.step()
    share = loss.detach() / target.var(0).mean()
    print(f"modulations by time: {float(share):.4f} of their variance missed", flush=True)
    return linear.requires_grad_(False)
