"""First weights of a HunyuanVideo student, copied from its teacher: a `WanTransformer3DModel` of the same width and
heads.

A dual block has a counterpart to every part of the teacher's block but the cross-attention. A single block stands in
for one, or for a part of one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
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

MAX_RATIO, MAX_GATES, MIN_GATE = 3.0, 10.0, 0.02
"""Bounds of the factors that stand in for a modulation which a single block does not have."""
LOUDNESS = 20.0
"""Of the text, against what the teacher has."""
TEXT_STEPS, TEXT_BATCH, TEXT_RATE = 400, 64, 2e-3


def copy_dual_block(
    block: HunyuanVideoTransformerBlock, source: WanTransformerBlock, time_proj: torch.nn.Linear
) -> None:
    """The stream of the latents; that of the text keeps its first weights, with closed gates and nothing to tell."""
    close(block.norm1_context.linear)
    close(block.attn.add_v_proj)
    block.norm1.linear.weight.copy_(time_proj.weight)
    block.norm1.linear.bias.copy_(time_proj.bias + source.scale_shift_table.flatten())
    copy_attention(block.attn, source.attn1)
    copy_linear(block.attn.to_out[0], source.attn1.to_out[0])
    copy_linear(block.ff.net[0].proj, source.ffn.net[0].proj)
    copy_linear(block.ff.net[2], source.ffn.net[2])


@dataclass(frozen=True, slots=True)
class Modulation:
    """Mean over time of one of the teacher's modulations, each [width]."""

    shift: torch.Tensor
    scale: torch.Tensor
    gate: torch.Tensor

    def in_terms_of(self, known: Modulation) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Factor and addend that make this one's input of the `known` one's, and the factor of the gates."""
        if known is self:
            return torch.ones_like(self.scale), torch.zeros_like(self.shift), torch.ones_like(self.gate)
        factor = ((1 + self.scale) / (1 + known.scale)).clamp(-MAX_RATIO, MAX_RATIO)
        gate = known.gate.sign() * known.gate.abs().clamp(min=MIN_GATE)
        return factor, self.shift - factor * known.shift, (self.gate / gate).clamp(-MAX_GATES, MAX_GATES)


def copy_single_block(
    block: HunyuanVideoSingleTransformerBlock,
    source: WanTransformerBlock,
    part: str,
    time_proj: torch.nn.Linear,
    shared: torch.Tensor,
    theirs: torch.Tensor,
    text: torch.Tensor,
    slowest: torch.Tensor,
) -> None:
    """A single block has one modulation where the teacher has one for the self-attention, none for the
    cross-attention, and one for the feed-forward: all but one are worked into the weights at their mean over time, of
    the modulations `shared`, [T, 6 * width]. Attention and feed-forward see the same latents, and a self-attention sees
    the text as well, which it has to learn to leave alone.

    `theirs` are words as the teacher's blocks get them, `text` the same ones out of the student's norm, both
    [words, width].
    """
    width = block.proj_mlp.in_features
    bias = time_proj.bias + source.scale_shift_table.flatten()
    mean = (shared.mean(0) + source.scale_shift_table.flatten()).view(6, width)
    around_self, around_ffn = Modulation(*mean[:3]), Modulation(*mean[3:])
    rows, own = (slice(3 * width, None), around_ffn) if part == "rest" else (slice(0, 3 * width), around_self)
    block.norm.linear.weight.copy_(time_proj.weight[rows])
    block.norm.linear.bias.copy_(bias[rows])
    if part == "rest":
        copy_cross_attention(block.attn, source.attn2, theirs, text * (1 + own.scale) + own.shift, slowest)
        around_cross = Modulation(source.norm2.bias, source.norm2.weight - 1, torch.ones(width))
        factor, addend, gates = around_cross.in_terms_of(own)
        block.attn.to_q.bias.add_(block.attn.to_q.weight @ addend)
        block.attn.to_q.weight.mul_(factor)
        out = source.attn2.to_out[0]
    else:
        copy_attention(block.attn, source.attn1)
        out, gates = source.attn1.to_out[0], torch.ones(width)
    block.proj_out.weight.zero_()
    block.proj_out.weight[:, :width] = gates[:, None] * out.weight
    block.proj_out.bias.copy_(gates * out.bias)
    if part != "self":
        first, second = source.ffn.net[0].proj, source.ffn.net[2]
        factor, addend, gates = around_ffn.in_terms_of(own)
        block.proj_mlp.weight.copy_(first.weight * factor)
        block.proj_mlp.bias.copy_(first.bias + first.weight @ addend)
        block.proj_out.weight[:, width:] = gates[:, None] * second.weight
        block.proj_out.bias.add_(gates * second.bias)


def fit_text(student: HunyuanVideoTransformer3DModel, words: Words) -> torch.Tensor:
    """Trains the student's embedding of the text on the teacher's, and returns what it makes of the attended words,
    [words, width].

    A single block sends its text through the weights and gates of the latents: it is too loud to be changed by them.
    """
    embedder, attended, wanted = student.context_embedder, words.attended, LOUDNESS * words.theirs
    fit_linear(embedder.proj_in, words.ours[attended], wanted[attended], 0.0, slice(None))

    def share_missed() -> torch.Tensor:
        rows = torch.randint(len(words.ours), (TEXT_BATCH,))
        answer = embedder(words.ours[rows], 1000 * torch.rand(TEXT_BATCH), attended[rows].long())
        here = wanted[rows][attended[rows]]
        return (answer[attended[rows]] - here).square().mean() / here.var(0).mean()

    missed = fit(embedder.parameters(), share_missed, TEXT_STEPS, TEXT_RATE)
    print(f"embedding of the text: {missed:.4f} of its variance missed", flush=True)
    return embedder(words.ours, torch.full((len(words.ours),), 500.0), attended.long())[attended]


@torch.no_grad()
def copy_to_hunyuan(
    student: HunyuanVideoTransformer3DModel,
    teacher: WanTransformer3DModel,
    plan: Plan,
    sigmas: torch.Tensor,
    words: Words,
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
        close(silent)
    for refiner in student.context_embedder.token_refiner.refiner_blocks:
        close(refiner.norm_out.linear)
    theirs = words.theirs[words.attended]
    text = torch.nn.functional.layer_norm(fit_text(student, words), theirs.shape[-1:])
    embedded, shared = times(teacher, sigmas * 1000)
    shift, scale = last_modulation(teacher, embedded)
    inputs, wanted = torch.nn.functional.silu(embedded), torch.cat([scale, shift], dim=1)
    fit_linear(student.norm_out.linear, inputs, wanted, 1e-6, slice(None))
    slowest, duals = slowest_channels(student.config.rope_axes_dim), len(student.transformer_blocks)
    for block, (index, part) in zip(student.transformer_blocks, plan[:duals], strict=True):
        if part != "all":
            raise ValueError(f"block {index} of the teacher, of which {part!r} is wanted, needs single blocks")
        copy_dual_block(block, teacher.blocks[index], source.time_proj)
    for block, (index, part) in zip(student.single_transformer_blocks, plan[duals:], strict=True):
        copy_single_block(block, teacher.blocks[index], part, source.time_proj, shared, theirs, text, slowest)
