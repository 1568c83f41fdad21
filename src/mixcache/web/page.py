"""The page: what is asked for on top, two clips side by side below it. In Gradio (extra `web`)."""

from __future__ import annotations

import os
import socket
from typing import Any

from mixcache.names import unknown_name
from mixcache.policies.hold import QUALITIES
from mixcache.report import figures
from mixcache.report.template import rendered
from mixcache.report.timeline import GRANULARITIES, cells
from mixcache.web.studio import Comparison, Stopped, Studio, Wish, as_json

DEFAULT, SPEED, QUALITY = "as it comes", "a speed-up", "a quality"
COLOURS = {"compute": "#c8553d", "cfg": "#e0a13a", "block": "#8b6fc0", "step": "#2f9c95"}
HEIGHTS = {"compute": "100%", "cfg": "50%", "block": "50%", "step": "16%"}
NUM_OUTPUTS = 8
HISTORY = ("prompt", "seed", "steps", "wanted", "speed-up", "PSNR")
TOGETHER = """() => setTimeout(() => document.querySelectorAll("#films video").forEach(
  video => { video.loop = video.muted = true; video.currentTime = 0; video.play().catch(() => {}); }), 400)"""
"""Both clips, and their difference, begin in the same moment."""


def gradio() -> Any:
    """The package; ValueError where it is not installed."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as package
    except ImportError:
        raise ValueError("mixcache web needs Gradio: pip install 'mixcache[web]'") from None
    return package


def check_port(host: str, port: int) -> None:
    """ValueError where the page cannot be there."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ValueError(f"port {port} of {host} cannot be had: {error.strerror}; --port names another") from error


def is_private(host: str) -> bool:
    """Whether only this machine reaches it."""
    return all(str(found[4][0]) in ("127.0.0.1", "::1") for found in socket.getaddrinfo(host, None))


def wish_of(prompt: str, seed: float, num_steps: float, how: str, speedup: float, quality: str) -> Wish:
    """What the fields say; ValueError for what is out of range."""
    if quality not in QUALITIES:
        raise ValueError(unknown_name("quality", quality, QUALITIES))
    return Wish(
        prompt=prompt,
        seed=int(seed or 0),
        num_steps=int(num_steps or 0),
        speedup=float(speedup) if how == SPEED else None,
        quality=quality if how == QUALITY else None,
    )


def told(found: Comparison) -> str:
    """The figures, as Markdown."""
    lines = [
        f"**{found.speedup:.2f}x** faster: denoised in {found.cached_seconds:.1f} s, not {found.plain_seconds:.1f} s",
        f"PSNR **{figures.psnr(found.psnr_db)}**, SSIM {figures.ssim(found.ssim)} against the plain clip",
        f"{found.saving:.0%} of the work left out",
    ]
    if found.loop_speedup is not None:
        wished = "" if found.wish.speedup is None else f", {found.wish.speedup:g}x wished"
        lines.append(f"{found.loop_speedup:.2f}x by the times of the cached clip's own steps{wished}")
    if found.why_not is not None:
        lines.append(f"not faster, or not by as much, because {found.why_not}")
    return "\n".join(f"- {line}" for line in lines)


def timeline(found: Comparison) -> str:
    """What each step did, as HTML."""
    return rendered("steps.html.j2", cells=cells(found.trace), colours=COLOURS, heights=HEIGHTS, meanings=GRANULARITIES)


def shown(found: Comparison) -> tuple[Any, ...]:
    """For the fields below: films, figures, timeline, JSON."""
    films = (str(found.plain), str(found.cached), str(found.difference))
    return (*films, told(found), timeline(found), as_json(found))


def row(found: Comparison) -> list[str]:
    wish = found.wish
    wanted = f"{wish.speedup:g}x" if wish.speedup else wish.quality or DEFAULT
    psnr = figures.psnr(found.psnr_db)
    return [wish.prompt, str(wish.seed), str(wish.num_steps), wanted, f"{found.speedup:.2f}x", psnr]


def build(studio: Studio) -> Any:
    """The page as Gradio's Blocks, with a queue of one generation."""
    gr = gradio()

    def generate(
        past: list[Comparison],
        prompt: str,
        seed: float,
        steps: float,
        how: str,
        speedup: float,
        quality: str,
        request: Any,
        progress: Any = gr.Progress(),  # noqa: B008 - by this default Gradio knows it
    ) -> tuple[Any, ...]:
        def on_stage(stage: str, done: int, total: int) -> None:
            progress((done, total), desc=f"{stage} clip")

        try:
            wish = wish_of(prompt, seed, steps, how, speedup, quality)
            found = studio.compare(wish, request.session_hash, on_stage)
        except Stopped:
            gr.Info("stopped")
            return (gr.skip(),) * NUM_OUTPUTS
        except (ValueError, TypeError, RuntimeError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        past = [*past, found]
        return past, [row(one) for one in past], *shown(found)

    def again(past: list[Comparison], event: Any) -> tuple[Any, ...]:
        return shown(past[event.index[0]])

    def stop(request: Any) -> None:
        studio.stop(request.session_hash)

    # by these types Gradio knows what to hand over
    generate.__annotations__["request"] = stop.__annotations__["request"] = gr.Request
    again.__annotations__["event"] = gr.SelectData
    with gr.Blocks(title="mixcache", analytics_enabled=False) as page:
        past = gr.State([])
        gr.Markdown(f"# mixcache\n{studio.model}: the plain clip and the cached one, from the same seed")
        with gr.Row():
            prompt = gr.Textbox(label="Prompt", lines=2, scale=3, elem_id="prompt")
            seed = gr.Number(label="Seed", value=0, precision=0)
            steps = gr.Number(label="Steps", value=studio.num_steps, precision=0, elem_id="steps")
        with gr.Row():
            how = gr.Radio([DEFAULT, SPEED, QUALITY], value=DEFAULT, label="Wanted")
            speedup = gr.Slider(1.0, 4.0, value=2.0, step=0.1, label="Speed-up", visible=False)
            quality = gr.Radio(list(QUALITIES), value="high", label="Quality", visible=False)
        how.change(
            lambda way: (gr.update(visible=way == SPEED), gr.update(visible=way == QUALITY)), how, [speedup, quality]
        )
        with gr.Row():
            go = gr.Button("Generate", variant="primary", elem_id="go")
            end = gr.Button("Stop", elem_id="stop")
            replay = gr.Button("Play together")
        with gr.Row(elem_id="films"):
            films = [
                gr.Video(label=name, autoplay=True, loop=True) for name in ("Plain", "Cached", "Difference, times 8")
            ]
        figures_box, timeline_box = gr.Markdown(elem_id="figures"), gr.HTML(elem_id="timeline")
        with gr.Accordion("All figures and steps", open=False):
            all_box = gr.Code(language="json")
        gr.Markdown("### History")
        history = gr.Dataframe(headers=list(HISTORY), interactive=False, elem_id="history")
        outputs = [*films, figures_box, timeline_box, all_box]
        event = go.click(
            generate,
            [past, prompt, seed, steps, how, speedup, quality],
            [past, history, *outputs],
            concurrency_limit=1,
            concurrency_id="device",
        )
        event.success(None, js=TOGETHER)
        end.click(stop, queue=False, cancels=[event])
        replay.click(None, js=TOGETHER)
        history.select(again, past, outputs).success(None, js=TOGETHER)
    return page
