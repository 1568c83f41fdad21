"""First weights of a student's denoiser, copied from its teacher: a `WanTransformer3DModel` of the same width, heads
and number of blocks.

Patches, self-attention, feed-forward, modulation by time and the last layer have a counterpart in both students. The
cross-attention has none: text reaches a student through its joint attention, which has to be learnt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import torch
from diffusers import CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel
from diffusers.models.transformers.transformer_hunyuan_video import (
    HunyuanVideoSingleTransformerBlock,
    HunyuanVideoTransformerBlock,
)
from diffusers.models.transformers.transformer_wan import WanTransformerBlock

Plan = Sequence[tuple[int, str]]
"""What each of a student's blocks stands for, see `students.stretches`."""


@dataclass(frozen=True, slots=True)
class Words:
    """The tokens of some captions."""

    ours: torch.Tensor
    """As the student gets them, [words, width]."""
    theirs: torch.Tensor
    """As the teacher's blocks get them, [words, width]."""


KEYS_RIDGE = 0.05
"""Keeps keys and values to what text has, so that the latents, which pass the same weights, give little."""
MAX_RATIO, MAX_GATES, MIN_GATE = 3.0, 10.0, 0.02
"""Bounds of the factors that stand in for a modulation which a single block does not have."""
LOUDNESS = 20.0
"""Of the text in a HunyuanVideo student, against what the teacher has."""
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

    A student normalises every head by itself and weighs all heads alike: the teacher's weights of the norm are worked
    into queries and keys.
    """
    size = len(source.norm_q.weight) // to.heads
    in_head = torch.arange(size) if in_head is None else in_head
    rows = (torch.arange(to.heads)[:, None] * size + in_head).flatten()
    for part, norm, its, its_norm in (
        (to.to_q, to.norm_q, source.to_q, source.norm_q),
        (to.to_k, to.norm_k, source.to_k, source.norm_k),
    ):
        weight, bias = fold_norm(its, its_norm)
        part.weight.copy_(weight[rows])
        part.bias.copy_(bias[rows])
        norm.weight.fill_(mean_weight(its_norm))
    copy_linear(to.to_v, source.to_v)


def open_gates(linear: torch.nn.Linear, chunks: int, gates: Sequence[int]) -> None:
    """Begins with modulations by nothing, of which those at the places `gates` of `chunks` let everything through."""
    linear.weight.zero_()
    linear.bias.zero_()
    linear.bias.view(chunks, -1)[list(gates)] = 1.0


def fold_norm(linear: torch.nn.Linear, norm: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and bias of queries or keys with the weights of the norm behind them worked in."""
    return linear.weight * norm.weight[:, None], linear.bias * norm.weight


def mean_weight(norm: torch.nn.Module) -> float:
    return float(norm.weight.square().mean().sqrt())


def fit_linear(to: torch.nn.Linear, inputs: torch.Tensor, wanted: torch.Tensor, ridge: float, rows: slice) -> None:
    """Sets rows of a layer so that it gives `wanted`, [T, rows], from `inputs`, [T, width], in the least squares."""
    ones = torch.cat([inputs, torch.ones(len(inputs), 1)], dim=1)
    penalty = ridge * torch.eye(ones.shape[1])
    penalty[-1, -1] = 0.0
    gram = ones.T @ ones / len(ones)
    solution = torch.linalg.solve(gram + penalty, ones.T @ wanted / len(ones))
    to.weight[rows], to.bias[rows] = solution[:-1].T, solution[-1]


def copy_cross_attention(
    to: torch.nn.Module, source: torch.nn.Module, words: Words, text: torch.Tensor, slowest: torch.Tensor
) -> None:
    """Queries from the latents, keys and values from the text, of which `text`, [words, width], is what they see.

    A student turns its queries by place, as the teacher does not: what tells keys apart most goes to the channels of
    a head that turn the `slowest`. That latents are not to be attended is left to be learnt.
    """
    size = len(source.norm_q.weight) // to.heads
    queries, queries_bias = fold_norm(source.to_q, source.norm_q)
    weight, bias = fold_norm(source.to_k, source.norm_k)
    keys = words.theirs @ weight.T + bias
    for head in range(to.heads):
        rows = slice(head * size, (head + 1) * size)
        _, directions = torch.linalg.eigh(torch.cov(keys[:, rows].T))
        turn = torch.empty(size, size)
        turn[slowest] = directions.flip(1).T
        to.to_q.weight[rows], to.to_q.bias[rows] = turn @ queries[rows], turn @ queries_bias[rows]
        fit_linear(to.to_k, text, keys[:, rows] @ turn.T, KEYS_RIDGE, rows)
    fit_linear(to.to_v, text, source.to_v(words.theirs), KEYS_RIDGE, slice(None))
    to.norm_q.weight.fill_(mean_weight(source.norm_q))
    to.norm_k.weight.fill_(mean_weight(source.norm_k))


def copy_dual_block(
    block: HunyuanVideoTransformerBlock, source: WanTransformerBlock, time_proj: torch.nn.Linear
) -> None:
    """The stream of the latents; that of the text keeps its first weights, with closed gates and nothing to tell."""
    open_gates(block.norm1_context.linear, 6, ())
    block.attn.add_v_proj.weight.zero_()
    block.attn.add_v_proj.bias.zero_()
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
        factor = ((1 + self.scale) / (1 + known.scale)).clamp(-MAX_RATIO, MAX_RATIO)
        gate = known.gate.sign() * known.gate.abs().clamp(min=MIN_GATE)
        return factor, self.shift - factor * known.shift, (self.gate / gate).clamp(-MAX_GATES, MAX_GATES)


def copy_single_block(
    block: HunyuanVideoSingleTransformerBlock,
    source: WanTransformerBlock,
    part: str,
    time_proj: torch.nn.Linear,
    shared: torch.Tensor,
    words: Words,
    slowest: torch.Tensor,
) -> None:
    """A single block has one modulation where the teacher has one for the self-attention, none for the
    cross-attention, and one for the feed-forward: all but one are worked into the weights at their mean over time, of
    the modulations `shared`, [T, 6 * width]. Attention and feed-forward see the same latents."""
    width = block.proj_mlp.in_features
    bias = time_proj.bias + source.scale_shift_table.flatten()
    mean = (shared.mean(0) + source.scale_shift_table.flatten()).view(6, width)
    around_self, around_ffn = Modulation(*mean[:3]), Modulation(*mean[3:])
    rows, own = (slice(3 * width, None), around_ffn) if part == "rest" else (slice(0, 3 * width), around_self)
    block.norm.linear.weight.copy_(time_proj.weight[rows])
    block.norm.linear.bias.copy_(bias[rows])
    if part == "rest":
        text = torch.nn.functional.layer_norm(words.theirs, (width,)) * (1 + own.scale) + own.shift
        copy_cross_attention(block.attn, source.attn2, words, text, slowest)
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


@singledispatch
def copy_teacher(
    student: torch.nn.Module, teacher: WanTransformer3DModel, plan: Plan, sigmas: torch.Tensor, words: Words
) -> None:
    """Sets the student's first weights; `sigmas` are the teacher's noise levels at the student's 1,000 timesteps."""
    raise TypeError(f"no counterparts of the teacher's weights are known in {type(student).__name__}")


@copy_teacher.register
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
        silent.weight.zero_()
        silent.bias.zero_()
    for refiner in student.context_embedder.token_refiner.refiner_blocks:
        open_gates(refiner.norm_out.linear, 2, ())
    # A single block gives its text through the weights and gates of the latents: it is too loud to be changed by them.
    fit_linear(student.context_embedder.proj_in, words.ours, LOUDNESS * words.theirs, 0.0, slice(None))
    seen = Words(words.ours, student.context_embedder.proj_in(words.ours) / LOUDNESS)
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
        copy_single_block(block, teacher.blocks[index], part, source.time_proj, shared, seen, slowest)


def slowest_channels(sizes: Sequence[int], theta: float = 10000.0) -> torch.Tensor:
    """A head's channels, those first that turn least from place to place."""
    turns = [theta ** (-(channel // 2 * 2) / size) for size in sizes for channel in range(size)]
    return torch.tensor(turns).argsort(stable=True)


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
    fit_linear(student.patch_embed.text_proj, words.ours, words.theirs, 0.0, slice(None))
    text = torch.nn.functional.layer_norm(student.patch_embed.text_proj(words.ours), (width,))
    embedded, shared = times(teacher, sigmas * 1000)
    shift, scale = last_modulation(teacher, embedded)
    fitted = fit_times(student, torch.cat([shared, shift, scale], dim=1))
    copy_linear(student.norm_out.linear, fitted, slice(6 * width, None))
    for block, (index, part) in zip(student.transformer_blocks, plan, strict=True):
        source = teacher.blocks[index]
        table = source.scale_shift_table.flatten().unflatten(0, (2, 3 * width))
        first, second = block.ff.net[0].proj, block.ff.net[2]
        # Text goes through the same weights, which are made for the small gates of latents: its own begin closed.
        for norm, rows, own in zip(
            (block.norm1, block.norm2), (slice(0, 3 * width), slice(3 * width, 6 * width)), table, strict=True
        ):
            norm.linear.weight.zero_()
            norm.linear.bias.zero_()
            norm.linear.weight[: 3 * width] = fitted.weight[rows]
            norm.linear.bias[: 3 * width] = fitted.bias[rows] + own
        second.weight.zero_()  # the student's feed-forward is wider, and what is new starts silent
        second.bias.zero_()
        if part != "self":
            known = source.ffn.net[0].proj.out_features
            first.weight[:known], first.bias[:known] = source.ffn.net[0].proj.weight, source.ffn.net[0].proj.bias
            second.weight[:, :known] = source.ffn.net[2].weight
            second.bias.copy_(source.ffn.net[2].bias)
        if part == "rest":
            block.norm1.linear.weight.zero_()
            block.norm1.linear.bias.view(6, width)[:3] = torch.stack(
                [source.norm2.bias, source.norm2.weight - 1, torch.ones(width)]
            )
            copy_cross_attention(block.attn1, source.attn2, words, text, slowest)
            copy_linear(block.attn1.to_out[0], source.attn2.to_out[0])
        else:
            copy_attention(block.attn1, source.attn1, in_head)
            copy_linear(block.attn1.to_out[0], source.attn1.to_out[0])
        if part == "self":
            block.norm1.linear.bias.view(6, width)[4] = -1.0  # nothing of the text in an attention that has none


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
