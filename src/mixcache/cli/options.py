"""Options that several verbs have, and what the library is given of them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mixcache.arguments import parse_size

if TYPE_CHECKING:
    from mixcache.config import MixCacheConfig

MAX_SEED = 2**63 - 1
Force = Annotated[bool, typer.Option("--force", help="Overwrite files that exist.")]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="A setting of the policy, its bounds or the span; may be repeated."
    ),
]
Speedup = Annotated[
    float | None, typer.Option(help="Wished speed-up of the denoising loop, such as 2.0 (policy hold).")
]
Quality = Annotated[
    str | None,
    typer.Option(
        help="In place of a speed-up: high, balanced or fast; or what nine clips of ten have, in dB, by a profile."
    ),
]
ProfileFile = Annotated[
    Path | None, typer.Option("--profile", help="Profile of the model; else the one that is shipped, if there is one.")
]
ImageFile = Annotated[Path | None, typer.Option("--image", help="Picture that the pipeline begins with.")]
VideoFile = Annotated[Path | None, typer.Option("--video", help="Film that the pipeline begins with.")]
NegativePrompt = Annotated[str | None, typer.Option(help="What not to show.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16 or float16; bfloat16 on a GPU unless told.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 ...; the GPU unless told, if there is one.")]
Model = Annotated[str, typer.Option(help="Built-in model, or the folder of a diffusers pipeline.")]
PolicyName = Annotated[str | None, typer.Option("--policy", help="Caching policy; hold unless told.")]
Guidance = Annotated[float | None, typer.Option(min=0, max=1000, help="Guidance scale.")]
Size = Annotated[str | None, typer.Option(metavar="WIDTHxHEIGHT", help="Frame size in pixels.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Number of frames.")]
PromptsFile = Annotated[Path | None, typer.Option("--prompts", help="Text file with one prompt a line.")]


def parse_config(policy: str | None, pairs: list[str] | None, **named: Any) -> MixCacheConfig:
    """The policy and its settings, checked; `named` are settings with an option of their own, None where not given.

    ValueError or TypeError for a wrong one.
    """
    from mixcache.config import DEFAULT_POLICY, MixCacheConfig, parse_settings

    settings = parse_settings(pairs) | {name: value for name, value in named.items() if value is not None}
    if "profile" in settings:
        settings["profile"] = str(settings["profile"])
    if "quality" in settings:
        settings["quality"] = number_or_word(settings["quality"])
    return MixCacheConfig(policy=policy or DEFAULT_POLICY, settings=settings)


def number_or_word(text: str) -> float | str:
    """`"40"` as 40.0; what is no number as it is."""
    try:
        return float(text)
    except ValueError:
        return text


def asked_arguments(
    size: str | None,
    frames: int | None,
    steps: int | None,
    guidance: float | None,
    negative_prompt: str | None,
    image: Path | None,
    video: Path | None,
) -> dict[str, Any]:
    """Arguments of the pipeline's call, those that were given; ValueError for a size that is none, and for a picture or
    film that cannot be read."""
    width, height = size_of(size)
    asked: dict[str, Any] = {"height": height, "width": width, "num_frames": frames}
    asked |= {"num_inference_steps": steps, "guidance_scale": guidance, "negative_prompt": negative_prompt}
    if image or video:
        from mixcache.arguments import read_image, read_video

        asked["image"] = read_image(image, (width, height)) if image else None
        asked["video"] = read_video(video, (width, height), frames) if video else None
    return {name: value for name, value in asked.items() if value is not None}


def size_of(size: str | None) -> tuple[int | None, int | None]:
    """Of `--size`, where it was given; ValueError where it is none."""
    return (None, None) if size is None else parse_size(size, "--size ")


def read_prompts(path: Path) -> list[str]:
    """The lines of a file that are not empty; ValueError where there are none."""
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"the prompts {path} cannot be read: {getattr(error, 'strerror', None) or 'no text'}"
        ) from None
    found = [line for line in lines if line]
    if not found:
        raise ValueError(f"there is no prompt in {path}; write one a line")
    return found
