"""What a pipeline's call takes, by which name, and whether it is given all that it needs.

It is read from the signature: some pipelines begin with an image, some with a video, and the number of frames has three
names.
"""

from __future__ import annotations

import hashlib
import inspect
import itertools
import re
import reprlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

OTHER_NAMES = {"num_frames": ("num_frames", "frames", "video_length")}
"""What some pipelines call an argument."""
NEEDED_BY_KIND = {"ImageToVideo": "image", "VideoToVideo": "video"}
"""What a pipeline of such a name cannot do without, even where its call has a default."""
OPTIONS = {
    "image": "--image",
    "video": "--video",
    "negative_prompt": "--negative-prompt",
    "guidance_scale": "--guidance",
    "num_inference_steps": "--steps",
    "num_frames": "--frames",
    "height": "--size",
    "width": "--size",
}
"""Of the command line, by argument of the pipeline's call."""


def accepted_arguments(pipeline: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of `arguments` that are not None and that the pipeline's call takes, under its own names."""
    known = inspect.signature(pipeline.__call__).parameters
    named = {
        next((own for own in OTHER_NAMES.get(name, ()) if own in known), name): value
        for name, value in arguments.items()
        if value is not None
    }
    return {name: value for name, value in named.items() if name in known}


def call_arguments(pipeline: Any, defaults: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the pipeline's call: those of `defaults` that it takes, and all that was asked for.

    ValueError where it takes one of these not, or lacks another.
    """
    if {"image", "video"} & set(asked):  # it has the size already, and some pipelines take it from there
        asked = {k: v for k, v in asked.items() if k not in ("height", "width") or accepted_arguments(pipeline, {k: v})}
    if "video" in asked and not accepted_arguments(pipeline, {"num_frames": 1}):
        asked = {name: value for name, value in asked.items() if name != "num_frames"}  # the same for its length
    unknown = [name for name in asked if not accepted_arguments(pipeline, {name: 1})]
    if unknown:
        raise ValueError(_takes_no(pipeline, unknown[0]))
    arguments = accepted_arguments(pipeline, defaults | asked)
    check_call(pipeline, arguments)
    return arguments


def check_call(pipeline: Any, arguments: Mapping[str, Any]) -> None:
    """ValueError where the pipeline's call lacks an argument that it needs, or takes none of that name; TypeError where
    it is not called with a prompt."""
    name = type(pipeline).__name__
    known = inspect.signature(pipeline.__call__).parameters
    if "prompt" not in known:
        raise TypeError(f"{name} is not called with a prompt; mixcache generates with pipelines of model_index.json")
    unknown = [argument for argument in arguments if argument not in known]
    if unknown:
        raise ValueError(_takes_no(pipeline, unknown[0]))
    given = {argument for argument, value in arguments.items() if value is not None}
    needed = [k for k, p in known.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    needed += [argument for kind, argument in NEEDED_BY_KIND.items() if kind in name and argument in known]
    missing = [argument for argument in needed if argument not in given and argument != "prompt"]
    if missing:
        option = OPTIONS.get(missing[0])
        how = f"give {missing[0]}=, or {option} on the command line" if option else f"give {missing[0]}= in Python"
        raise ValueError(f"{name} needs {_with_article(missing[0])} and none was given; {how}")
    if "VideoToWorld" in name and not given & {"image", "video"}:
        raise ValueError(f"{name} needs an image or a video and none was given; give image= or video=")


def _takes_no(pipeline: Any, argument: str) -> str:
    option = f" ({OPTIONS[argument]})" if argument in OPTIONS else ""
    return f"{type(pipeline).__name__} takes no {argument}{option}; leave it out"


def _with_article(argument: str) -> str:
    return {"image": "an image", "video": "a video"}.get(argument, f"the argument {argument}")


def parse_size(size: Any, name: str = "size=") -> tuple[int, int]:
    """`"832x480"` as (832, 480); ValueError for anything else, which begins with the name."""
    found = re.fullmatch(r"([0-9]{1,6})[xX]([0-9]{1,6})", size) if isinstance(size, str) else None
    if found is None or not (int(found[1]) and int(found[2])):
        raise ValueError(f"{name}{reprlib.repr(size)} is not WIDTHxHEIGHT, such as 832x480")
    return int(found[1]), int(found[2])


def read_image(path: Path, size: tuple[int | None, int | None] = (None, None)) -> Image:
    """The picture in a file, in colours, at (width, height) where that is given; ValueError where there is none."""
    import PIL.Image

    try:
        with PIL.Image.open(path) as picture:
            return _resized(picture.convert("RGB"), size)
    except (OSError, ValueError, SyntaxError) as error:
        raise ValueError(f"the image {path} cannot be read: {_reason(error, 'it is no picture')}") from error


def read_video(
    path: Path, size: tuple[int | None, int | None] = (None, None), num_frames: int | None = None
) -> list[Image]:
    """The first `num_frames` frames of a film, or all of them, at (width, height) where that is given; ValueError where
    they cannot be read."""
    import imageio.v2 as imageio
    import PIL.Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)  # ffmpeg's plugin leaves pipes to the collector
            reader: Any = imageio.get_reader(path)
            with reader:
                frames = [PIL.Image.fromarray(frame[..., :3]) for frame in itertools.islice(reader, num_frames)]
            del reader
    except Exception as error:  # each of its plugins fails in ways of its own
        raise ValueError(f"the video {path} cannot be read: {_reason(error, 'it is no film')}") from error
    if not frames:
        raise ValueError(f"the video {path} has no frames")
    return [_resized(frame.convert("RGB"), size) for frame in frames]


def _resized(picture: Image, size: tuple[int | None, int | None]) -> Image:
    width, height = size
    return picture.resize((width, height)) if width and height else picture


def _reason(error: BaseException, otherwise: str) -> str:
    return getattr(error, "strerror", None) or otherwise


def told_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call as they can be written down and compared: a picture or a film is told by its hash."""
    return {name: _told(value) for name, value in arguments.items()}


def _told(value: Any) -> Any:
    if isinstance(value, (list, tuple)) and value and hasattr(value[0], "tobytes"):
        digest = hashlib.sha256("".join(_told(picture) for picture in value).encode()).hexdigest()
        return f"{len(value)} pictures, sha256 {digest[:16]}"
    if hasattr(value, "tobytes"):
        size = "x".join(map(str, getattr(value, "size", ""))) if isinstance(getattr(value, "size", 0), tuple) else ""
        return f"picture {size}, sha256 {hashlib.sha256(value.tobytes()).hexdigest()[:16]}"
    return value
