"""The drawn world and the built-in models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mixcache import zoo
from mixcache.profiles import profile_for
from mixcache.zoo import world
from mixcache.zoo.world import MAX_SEQUENCE_LENGTH
from training import drawing
from training.tokenizer import build_tokenizer


def test_a_scene_is_drawn_the_same_from_the_same_seed_at_any_size() -> None:
    first, second = (world.sample_scenes(5, 3, held_out=False) for _ in range(2))
    assert first == second
    clip = drawing.draw(first[0])
    assert torch.equal(clip, drawing.draw(second[0]))
    assert clip.shape == (world.NUM_FRAMES, world.SIDE, world.SIDE, 3)
    assert clip.min() >= 0
    assert clip.max() <= 1
    assert drawing.draw(first[0], num_frames=5, height=32, width=48).shape == (5, 32, 48, 3)
    batch = drawing.draw_batch(first, num_frames=2, height=16, width=16)
    assert batch.shape == (5, 3, 2, 16, 16)
    assert batch.min() >= -1


def test_a_circle_of_known_radius_covers_its_area() -> None:
    thing = world.Object(
        colour="red",
        shape="circle",
        size="large",
        motion="right",
        anchor=(0.0, 0.0),
        amplitude=0.5,
        radius=0.4,
        angle=0.0,
        turn=0.0,
    )
    scene = world.Scene(objects=(thing,), pattern="plain", tone="black", angle=0.0, phase=(0.0, 0.0))
    clip = drawing.draw(scene, num_frames=3, height=64, width=64)
    red = (clip[..., 0] - world.TONES["black"]) / (world.COLOURS["red"][0] - world.TONES["black"])
    area = np.pi * (0.4 * 32) ** 2
    assert red.sum(dim=(1, 2)).tolist() == pytest.approx([area] * 3, rel=0.01)
    columns = torch.arange(64) + 0.5
    centres = [(frame.sum(0) * columns).sum() / frame.sum() for frame in red]
    assert [float(c) for c in centres] == pytest.approx([32 - 16, 32, 32 + 16], abs=0.05)


def test_held_out_captions_are_never_drawn_for_training() -> None:
    held_out = set(world.held_out_captions(64, seed=2))
    assert len(held_out) == 64
    assert all(world.is_held_out(caption) for caption in held_out)
    training = {scene.caption for scene in world.sample_scenes(2000, 1, held_out=False)}
    assert not training & held_out
    share = np.mean([world.is_held_out(world.sample_scene(np.random.default_rng(s)).caption) for s in range(2000)])
    assert 0.07 < share < 0.13


def test_every_caption_is_made_of_known_words() -> None:
    tokenizer = build_tokenizer()
    captions = [scene.caption for scene in world.sample_scenes(500, 5, held_out=False)]
    tokens = tokenizer(captions)["input_ids"]
    assert max(len(row) for row in tokens) <= MAX_SEQUENCE_LENGTH
    assert not any(tokenizer.unk_token_id in row for row in tokens)
    assert all(row[-1] == tokenizer.eos_token_id for row in tokens)
    assert tokenizer("a heptagon")["input_ids"][1] == tokenizer.unk_token_id


PARTS = {
    "shapes-wan": {
        "pipeline": "WanPipeline",
        "scheduler": "UniPCMultistepScheduler",
        "vae": "AutoencoderKLWan",
        "text_encoder": "UMT5EncoderModel",
        "transformer": "WanTransformer3DModel",
    },
    "shapes-hunyuan": {
        "pipeline": "HunyuanVideoPipeline",
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "vae": "AutoencoderKLHunyuanVideo",
        "text_encoder": "LlamaModel",
        "text_encoder_2": "CLIPTextModel",
        "transformer": "HunyuanVideoTransformer3DModel",
    },
    "shapes-cogvideox": {
        "pipeline": "CogVideoXPipeline",
        "scheduler": "CogVideoXDDIMScheduler",
        "vae": "AutoencoderKLCogVideoX",
        "text_encoder": "T5EncoderModel",
        "transformer": "CogVideoXTransformer3DModel",
    },
}
AUTOENCODER_PSNR = {"shapes-wan": 27.0, "shapes-hunyuan": 24.5, "shapes-cogvideox": 24.5}
"""At least, in dB, of held-out clips."""


def first_fast(few: int, many: int) -> pytest.MarkDecorator:
    """What the weights show takes long, and changes with training alone: on `few` clips of the first model, and on
    `many` of all of them in `make test-all`."""
    slow = [pytest.param(name, many, marks=pytest.mark.slow) for name in zoo.BUILT_IN]
    return pytest.mark.parametrize(("model", "num_clips"), [(zoo.BUILT_IN[0], few), *slow])


@pytest.mark.parametrize("model", zoo.BUILT_IN)
def test_a_built_in_model_is_an_ordinary_pipeline_folder(model: str) -> None:
    """The stock class alone loads it."""
    import diffusers

    parts = dict(PARTS[model])
    folder = zoo.folder(model)
    pipeline = getattr(diffusers, parts.pop("pipeline")).from_pretrained(folder, local_files_only=True)
    assert {name: type(getattr(pipeline, name)).__name__ for name in parts} == parts
    assert type(zoo.load(model)) is type(pipeline)
    assert (folder / "README.md").is_file()
    assert profile_for(pipeline.transformer) is not None
    assert sum(path.stat().st_size for path in folder.rglob("*.safetensors")) <= 16 * 2**20


def test_an_unknown_model_is_refused() -> None:
    for ask in (zoo.load, zoo.folder, zoo.call_defaults):
        with pytest.raises(ValueError, match="unknown built-in model 'shapes-won'"):
            ask("shapes-won")


@first_fast(few=4, many=24)
def test_the_autoencoder_brings_held_out_clips_back(model: str, num_clips: int) -> None:
    vae = zoo.load(model).vae
    clips = drawing.draw_batch(world.sample_scenes(num_clips, 79, held_out=True))
    with torch.no_grad():
        decoded = torch.cat([vae.decode(vae.encode(c).latent_dist.mode()).sample for c in clips.split(4)])
    mse = (((decoded - clips) / 2) ** 2).mean(dim=(1, 2, 3, 4))
    assert (-10 * mse.log10()).mean() >= AUTOENCODER_PSNR[model]


@first_fast(few=2, many=6)
def test_a_built_in_model_shows_what_the_caption_says(model: str, num_clips: int) -> None:
    """A few held-out captions in few steps; the model cards have the figures for 64 captions in 50 steps."""
    from mixcache.generation import generate
    from studies.captions import adherence

    pipeline, arguments = zoo.load(model), zoo.call_defaults(model) | {"num_inference_steps": 20}
    captions = world.held_out_captions(num_clips, seed=2)
    readings = [
        adherence(generate(pipeline, caption, seed=70 + index, **arguments).clip, caption)
        for index, caption in enumerate(captions)
    ]
    assert np.mean([reading.colour for reading in readings]) >= 0.8
    assert np.mean([reading.background for reading in readings]) >= 0.8
