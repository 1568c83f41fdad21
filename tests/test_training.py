"""Weights that a student's denoiser takes over from its teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel, HunyuanVideoTransformer3DModel, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed

FRAMES, SIDE, CHANNELS = 3, 12, 4
SIGMAS = torch.arange(1000) / 1000
TIMESTEPS = torch.tensor([900, 500])


@pytest.fixture
def copy_teacher(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of training/warm_start.py."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "training")
    from warm_start import copy_teacher

    return copy_teacher


@pytest.fixture
def telling_teacher() -> WanTransformer3DModel:
    """One head, so that heads are normalised alike everywhere."""
    torch.manual_seed(0)
    return WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=1,
        attention_head_dim=48,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=8,
        freq_dim=128,
        ffn_dim=96,
        num_layers=3,
        cross_attn_norm=True,
    ).requires_grad_(False)


@pytest.fixture
def teacher(telling_teacher: WanTransformer3DModel) -> WanTransformer3DModel:
    """Cross-attention adds nothing."""
    for block in telling_teacher.blocks:
        block.attn2.to_out[0].weight.zero_()
        block.attn2.to_out[0].bias.zero_()
    return telling_teacher


def words(width: int) -> Any:
    from counterparts import Words

    return Words(torch.randn(200, width), torch.randn(200, 48))


def missed(answer: torch.Tensor, teacher: WanTransformer3DModel, x: torch.Tensor) -> float:
    """Share of the teacher's velocity."""
    with torch.no_grad():
        true = teacher(x, TIMESTEPS, torch.randn(2, 5, 8), return_dict=False)[0]
    return float((answer - true).square().mean() / true.square().mean())


HUNYUAN = dict(
    num_refiner_layers=1,
    mlp_ratio=2.0,
    patch_size=2,
    text_embed_dim=8,
    pooled_projection_dim=8,
    rope_axes_dim=(16, 16, 16),
    rope_theta=10000.0,
)
COGVIDEOX = dict(time_embed_dim=32, text_embed_dim=8, use_rotary_positional_embeddings=True)


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


def hunyuan_answer(teacher: WanTransformer3DModel, copy_teacher: Any, num_dual: int, x: torch.Tensor) -> torch.Tensor:
    student = HunyuanVideoTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=1,
        attention_head_dim=48,
        num_layers=num_dual,
        num_single_layers=3 - num_dual,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        patch_size=2,
        text_embed_dim=8,
        pooled_projection_dim=8,
        rope_axes_dim=(16, 16, 16),
        rope_theta=10000.0,
    )
    copy_teacher(student, teacher, [(block, "all") for block in range(3)], SIGMAS, words(8))
    with torch.no_grad():
        return student(
            hidden_states=x,
            timestep=TIMESTEPS,
            encoder_hidden_states=torch.randn(2, 5, 8),
            encoder_attention_mask=torch.tensor([[1, 0, 0, 0, 0]] * 2),  # one word among 109 tokens
            pooled_projections=torch.randn(2, 8),
            guidance=torch.tensor([1000.0, 6000.0]),
            return_dict=False,
        )[0]


@pytest.mark.parametrize(("num_dual", "share"), [(3, 0.01), (1, 0.3)])
def test_a_hunyuan_student_begins_as_its_teacher_without_text(
    teacher: WanTransformer3DModel, copy_teacher: Any, num_dual: int, share: float
) -> None:
    """Dual blocks are the teacher's; a single block stands in for one, and is near it."""
    x = torch.randn(2, CHANNELS, FRAMES, SIDE, SIDE)
    assert missed(hunyuan_answer(teacher, copy_teacher, num_dual, x), teacher, x) < share


def test_a_cogvideox_student_begins_near_its_teacher_without_text(
    teacher: WanTransformer3DModel, copy_teacher: Any
) -> None:
    x = torch.randn(2, CHANNELS, FRAMES, SIDE, SIDE)
    student = CogVideoXTransformer3DModel(
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        num_attention_heads=1,
        attention_head_dim=48,
        num_layers=3,
        time_embed_dim=32,
        text_embed_dim=8,
        sample_width=SIDE,
        sample_height=SIDE,
        sample_frames=4 * (FRAMES - 1) + 1,
        max_text_seq_length=1,
        use_rotary_positional_embeddings=True,
    )
    copy_teacher(student, teacher, [(block, "all") for block in range(3)], SIGMAS, words(8))
    grid = (SIDE // 2, SIDE // 2)
    rotary = get_3d_rotary_pos_embed(embed_dim=48, crops_coords=((0, 0), grid), grid_size=grid, temporal_size=FRAMES)
    with torch.no_grad():
        answer = student(
            hidden_states=x.transpose(1, 2),
            timestep=TIMESTEPS,
            encoder_hidden_states=torch.randn(2, 1, 8),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0].transpose(1, 2)
    assert missed(answer, teacher, x) < 0.1


@pytest.mark.parametrize("student_class", [HunyuanVideoTransformer3DModel, CogVideoXTransformer3DModel])
def test_a_cross_attention_with_a_block_of_its_own_begins_near_its_teachers(
    telling_teacher: WanTransformer3DModel, copy_teacher: Any, student_class: Any
) -> None:
    """One latent token among 41: that the others are not to be attended has yet to be learnt."""
    from counterparts import Words
    from students import stretches

    telling_teacher.blocks[0].attn2.to_out[0].weight.zero_()  # block 0 is told nothing
    plan = stretches(3, (1, 2))
    plain = dict(in_channels=CHANNELS, out_channels=CHANNELS, num_attention_heads=1, attention_head_dim=48)
    if student_class is HunyuanVideoTransformer3DModel:
        own: dict[str, Any] = dict(HUNYUAN, num_layers=1, num_single_layers=len(plan) - 1)
    else:
        own = dict(COGVIDEOX, num_layers=len(plan), sample_width=2, sample_height=2, sample_frames=1)
        own |= dict(max_text_seq_length=40)
    student = student_class(**plain, **own)
    ours = torch.randn(200, 8)
    theirs = telling_teacher.condition_embedder.text_embedder(ours)
    copy_teacher(student, telling_teacher, plan, SIGMAS, Words(ours, theirs))
    x, texts, timesteps = torch.randn(1, CHANNELS, 1, 2, 2), ours.view(5, 40, 8)[:2], torch.tensor([600, 600])
    with torch.no_grad():
        true = telling_teacher(x.repeat(2, 1, 1, 1, 1), timesteps, texts, return_dict=False)[0]
        answer = ask(student, x.repeat(2, 1, 1, 1, 1), timesteps, texts)
    wanted, difference = true[0] - true[1], answer[0] - answer[1]
    assert torch.nn.functional.cosine_similarity(wanted.flatten(), difference.flatten(), dim=0) > 0.6


def test_a_model_without_known_counterparts_is_refused(teacher: WanTransformer3DModel, copy_teacher: Any) -> None:
    with pytest.raises(TypeError, match="no counterparts"):
        copy_teacher(torch.nn.Linear(2, 2), teacher, [], SIGMAS, words(8))
