"""First weights that a student's denoiser takes over from its teacher, and what it is held to."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import CogVideoXDDIMScheduler, CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel
from diffusers import WanTransformer3DModel as Teacher
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from diffusers.models.transformers.cogvideox_transformer_3d import CogVideoXBlock
from diffusers.models.transformers.transformer_wan import WanAttention, WanAttnProcessor

CHANNELS, NUM_TOKENS, TEXT_WIDTH = 4, 20, 8
SIGMAS = torch.arange(1000) / 1000
PLAIN = dict(in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=1, attention_head_dim=48)
HUNYUAN = dict(
    num_refiner_layers=1,
    mlp_ratio=2.0,
    patch_size=2,
    text_embed_dim=TEXT_WIDTH,
    pooled_projection_dim=8,
    rope_axes_dim=(16, 16, 16),
    rope_theta=10000.0,
)
COGVIDEOX = dict(
    time_embed_dim=32, text_embed_dim=TEXT_WIDTH, use_rotary_positional_embeddings=True, max_text_seq_length=NUM_TOKENS
)


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The modules of training/."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "training")
    import counterparts
    import distil_transformer
    import hints
    import students
    import warm_start
    import warm_start_cogvideox
    import warm_start_hunyuan

    monkeypatch.setattr(warm_start_cogvideox, "FIT_STEPS", 1000)
    monkeypatch.setattr(warm_start_hunyuan, "TEXT_STEPS", 100)
    return SimpleNamespace(
        copy_teacher=warm_start.copy_teacher,
        counterparts=counterparts,
        distil=distil_transformer,
        hints=hints,
        students=students,
    )


@pytest.fixture
def teacher() -> Teacher:
    """One head, so that heads are normalised alike everywhere; blocks that matter."""
    torch.manual_seed(0)
    teacher = Teacher(
        patch_size=(1, 2, 2),
        num_attention_heads=1,
        attention_head_dim=48,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=TEXT_WIDTH,
        freq_dim=128,
        ffn_dim=96,
        num_layers=3,
        cross_attn_norm=True,
    ).requires_grad_(False)
    for block in teacher.blocks:
        block.scale_shift_table.mul_(5)
    return teacher


def silence(*attentions: Any) -> None:
    for attention in attentions:
        attention.to_out[0].weight.zero_()
        attention.to_out[0].bias.zero_()


def build(training: SimpleNamespace, teacher: Teacher, student_class: Any, plan: Any, num_dual: int = 1) -> Any:
    """A student with its first weights, and words that both it and the teacher know, [10, NUM_TOKENS, TEXT_WIDTH]."""
    if student_class is HunyuanVideoTransformer3DModel:
        own: dict[str, Any] = HUNYUAN | dict(num_layers=num_dual, num_single_layers=len(plan) - num_dual)
    else:
        own = COGVIDEOX | dict(num_layers=len(plan))
    student = student_class(**PLAIN, **own)
    ours = torch.randn(60, NUM_TOKENS, TEXT_WIDTH)
    theirs = teacher.condition_embedder.text_embedder(ours)
    words = training.counterparts.Words(ours, theirs, torch.ones(ours.shape[:2], dtype=torch.bool))
    training.copy_teacher(student, teacher, plan, SIGMAS, words)
    return student.requires_grad_(False), ours[:10]


def ask(student: Any, x: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """A student's answer in the teacher's order of channels and frames."""
    if isinstance(student, HunyuanVideoTransformer3DModel):
        more = dict(
            encoder_attention_mask=torch.ones(text.shape[:2], dtype=torch.int64),
            pooled_projections=torch.randn(len(x), 8),
            guidance=torch.full((len(x),), 1000.0),
        )
        return student(x, timesteps, text, return_dict=False, **more)[0]
    frames, side = x.shape[2], x.shape[3] // 2
    rotary = get_3d_rotary_pos_embed(
        embed_dim=48, crops_coords=((0, 0), (side, side)), grid_size=(side, side), temporal_size=frames
    )
    return student(x.transpose(1, 2), text, timesteps, image_rotary_emb=rotary, return_dict=False)[0].transpose(1, 2)


def missed(answer: torch.Tensor, true: torch.Tensor) -> float:
    """Share of the teacher's velocity."""
    return float((answer - true).square().mean() / true.square().mean())


@pytest.mark.parametrize(
    ("student_class", "num_dual", "share"),
    [
        (HunyuanVideoTransformer3DModel, 3, 0.05),
        (HunyuanVideoTransformer3DModel, 1, 0.5),
        (CogVideoXTransformer3DModel, 0, 0.25),
    ],
)
def test_a_student_begins_as_its_teacher_without_text(
    training: SimpleNamespace, teacher: Teacher, student_class: Any, num_dual: int, share: float
) -> None:
    """Dual blocks are the teacher's; others stand in for one, and are nearer to it than nothing."""
    silence(*(block.attn2 for block in teacher.blocks))
    student, text = build(training, teacher, student_class, training.students.stretches(3, ()), num_dual)
    x, timesteps = torch.randn(2, CHANNELS, 3, 12, 12), torch.tensor([900, 500])
    true = teacher(x, timesteps, text[:2], return_dict=False)[0]
    answer = ask(student, x, timesteps, text[:2, :1])  # one word among 109 tokens
    teacher.blocks = torch.nn.ModuleList()
    nothing = missed(teacher(x, timesteps, text[:2], return_dict=False)[0], true)
    assert nothing > 0.2
    assert missed(answer, true) < share * nothing


def test_a_cross_attention_with_a_block_of_its_own_begins_near_its_teachers(training: SimpleNamespace) -> None:
    """Among words alone and without turning by place: that latents are not to be attended has yet to be learnt."""
    torch.manual_seed(0)
    heads, size, words = 2, 48, torch.randn(400, 96)
    source = WanAttention(
        dim=96, heads=heads, dim_head=size, cross_attention_dim_head=size, processor=WanAttnProcessor()
    )
    source.requires_grad_(False)
    source.norm_q.weight.mul_(4)  # so that words are told apart
    own = CogVideoXBlock(96, heads, size, time_embed_dim=8, attention_bias=True).attn1.requires_grad_(False)
    slowest = training.counterparts.slowest_channels((12, 18, 18))
    text = torch.nn.functional.layer_norm(words, (96,))
    training.counterparts.copy_cross_attention(own, source, words, text, slowest)
    own.to_out[0].load_state_dict(source.to_out[0].state_dict())
    latents = torch.randn(1, 50, 96)
    true = source(latents, words[None, :30])

    def likeness() -> float:
        def in_heads(x: torch.Tensor) -> torch.Tensor:
            return x.unflatten(-1, (heads, size)).transpose(-2, -3)

        queries, keys = own.norm_q(in_heads(own.to_q(latents[0]))), own.norm_k(in_heads(own.to_k(text[:30])))
        mixed = torch.nn.functional.scaled_dot_product_attention(queries, keys, in_heads(own.to_v(text[:30])))
        answer = own.to_out[0](mixed.transpose(-2, -3).flatten(-2))[None]
        return float(torch.nn.functional.cosine_similarity((answer - answer.mean()).flatten(), true.flatten(), dim=0))

    assert likeness() > 0.9
    own.to_q.weight.neg_()
    assert likeness() < 0.7


def test_the_slowest_channels_of_a_head_come_first(training: SimpleNamespace) -> None:
    assert training.counterparts.slowest_channels((4, 2)).tolist() == [2, 3, 0, 1, 4, 5]


def test_a_model_without_known_counterparts_is_refused(training: SimpleNamespace, teacher: Teacher) -> None:
    words = training.counterparts.Words(*(torch.zeros(1, 1, 8) for _ in range(2)), torch.ones(1, 1, dtype=torch.bool))
    with pytest.raises(TypeError, match="no counterparts"):
        training.copy_teacher(torch.nn.Linear(2, 2), teacher, [], SIGMAS, words)


@pytest.mark.parametrize("student_class", [HunyuanVideoTransformer3DModel, CogVideoXTransformer3DModel])
def test_forced_blocks_are_held_to_their_own_stretch(
    training: SimpleNamespace, teacher: Teacher, student_class: Any
) -> None:
    plan = training.students.stretches(3, ())
    silence(*(block.attn2 for block in teacher.blocks))
    student, text = build(training, teacher, student_class, plan, num_dual=3)
    blocks = [*student.transformer_blocks, *getattr(student, "single_transformer_blocks", ())]
    stream, seen = training.hints.watch_teacher(teacher, plan), training.hints.watch(blocks)
    forcing = training.hints.Forcing(blocks, stream)
    x, timesteps = torch.randn(2, CHANNELS, 3, 12, 12), torch.tensor([900, 500])

    def missed_hints(shift: int) -> float:
        stream.clear()
        seen.clear()
        teacher(x, timesteps, text[:2])
        stream[:] = stream[shift:] + stream[:shift]
        forcing.on = True
        ask(student, x, timesteps, text[:2, :1])
        return float(training.hints.missed_hints(seen, stream, forced=True))

    assert len(stream) == len(seen) == 0
    assert missed_hints(0) < 0.3 * min(missed_hints(1), missed_hints(3))


def test_a_cogvideox_student_is_taught_its_schedulers_velocity(training: SimpleNamespace) -> None:
    """Where the teacher knows the clip: its velocity is then noise - x0."""
    x0, noise = torch.randn(4, 20, 5, 12, 12), torch.randn(4, 20, 5, 12, 12)
    uniform, told = torch.tensor([0.1, 0.4, 0.7, 0.99]), []

    class Student(torch.nn.Module):
        config = SimpleNamespace(patch_size=2, attention_head_dim=32)

        def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
            told.append((hidden_states.transpose(1, 2), timestep))
            return (hidden_states,)

    answers = training.distil.cogvideox_answers(
        Student(), lambda *_: noise - x0, {"text_encoder": torch.zeros(1, 1, 1)}, torch.ones(1, 1), 3.0
    )
    _, target = answers(x0, noise, uniform, torch.zeros(4, dtype=torch.int64), None)
    scheduler = CogVideoXDDIMScheduler(**training.students.COGVIDEOX_SCHEDULER)
    [(point, timestep)] = told
    assert torch.allclose(point, scheduler.add_noise(x0, noise, timestep), atol=1e-5)
    assert torch.allclose(target, scheduler.get_velocity(x0, noise, timestep), atol=1e-4)


def test_a_hunyuan_student_is_taught_guided_velocities(training: SimpleNamespace) -> None:
    """The teacher answers with a caption's row, and 5, the last one, without a caption."""

    def velocity(points: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        return rows.float().view(-1, 1, 1, 1, 1).expand(-1, *points.shape[1:])

    def student(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor]:
        return (hidden_states,)

    text = {"text_encoder": torch.zeros(6, 3, 8), "text_encoder_2": torch.zeros(6, 1, 8)}
    answers = training.distil.hunyuan_answers(student, velocity, text, torch.ones(6, 3), 5.0)
    x, rows, guidance = torch.randn(4, 2, 1, 2, 2), torch.tensor([0, 1, 2, 5]), torch.tensor([4.0, 1.0, 4.0, 1.0])
    _, plain = answers(x, x, torch.rand(4), rows, None)
    _, guided = answers(x, x, torch.rand(4), rows, guidance)
    assert plain[:, 0, 0, 0, 0].tolist() == [0, 1, 2, 5]
    assert guided[:, 0, 0, 0, 0].tolist() == [(5 + 4 * (0 - 5)) / 2, 1, (5 + 4 * (2 - 5)) / 2, 5]


def test_the_difference_between_two_captions_counts_by_itself(training: SimpleNamespace) -> None:
    target = torch.cat([torch.ones(3, 5), torch.zeros(3, 5)])
    missed_difference: Callable[..., torch.Tensor] = training.distil.missed_difference
    assert missed_difference(target, target) == 0
    assert missed_difference(target + 7, target) == 0
    floor = training.distil.DIFFERENCE_FLOOR
    assert float(missed_difference(0 * target, target)) == pytest.approx(1 / (1 + floor))
