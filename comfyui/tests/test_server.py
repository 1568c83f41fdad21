"""Workflows through the real server, as a user's browser posts them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
import torch
from browser import Refused, Server
from measure import OURS, measured, methods_of
from reference import denoised
from safetensors.torch import load_file
from workflows import cached, cached_workflow, node, plain_workflow, sampled, tiny

EVERY_SECOND = {"policy": "every_nth", "setting": 2.0}


def latents(server: Server, workflow: dict[str, Any], name: str = "latents") -> torch.Tensor:
    return load_file(server.file(server.run(workflow)[name], "latents"))["latent_tensor"]


def report(server: Server, workflow: dict[str, Any], *, model: str = "cache", sampler: str = "latents sampler") -> str:
    shown = {"report": node("MixCacheReport", model=[model, 0], samples=[sampler, 0])}
    saved = {"picture": node("SaveImage", images=["report", 0], filename_prefix="report")}
    return server.run(workflow | shown | saved)["report"]["text"][0]


@pytest.fixture(scope="module")
def plain(server: Server) -> torch.Tensor:
    return latents(server, plain_workflow())


def distance(clip: torch.Tensor, of: torch.Tensor) -> float:
    return float((clip - of).norm() / of.norm())


@pytest.mark.parametrize("correct", [False, True])
def test_cached_equals_an_independent_reference(server: Server, plain: torch.Tensor, correct: bool) -> None:
    clip = latents(server, cached_workflow({**EVERY_SECOND, "correct": correct}))
    is_cached = [4 < step < 19 and step % 2 == 1 for step in range(20)]
    wanted = denoised(is_cached, correct=correct)
    assert distance(clip, wanted) < 1e-3
    assert distance(clip, plain) > 10 * distance(clip, wanted)
    assert distance(denoised([False] * 20, correct=False), plain) < 1e-3


def test_what_is_all_computed_has_the_bits_of_the_plain_clip(server: Server, plain: torch.Tensor) -> None:
    assert torch.equal(latents(server, cached_workflow({**EVERY_SECOND, "start_percent": 0.99})), plain)


def test_the_node_leaves_nothing_behind(server: Server, plain: torch.Tensor) -> None:
    """Two prompts in turn, and then the node removed: the bits of the server's first clip."""
    other = {"model": tiny(prompt="a small blue square moving up on a plain black background")}
    first = latents(server, cached_workflow(seed=11))
    between = latents(server, cached_workflow(seed=12) | other)
    assert not torch.equal(first, between)
    # a seed in between, since the server answers from memory what it was asked before
    latents(server, plain_workflow(seed=13))
    assert torch.equal(latents(server, plain_workflow()), plain)
    other_order = latents(server, cached_workflow(seed=11, save="again"), "again")
    assert torch.equal(other_order, first)
    state = server.run({"model": tiny(), "state": node("TinyState", after=["model", 0], when=1)})["state"]["state"][0]
    assert state["engines"] == state["samplings"] == 0
    assert "mixcache" not in state["options"]
    assert not [kind for kind in state["wrappers"] if "mixcache" in kind]


def test_tensors_do_not_gather(server: Server) -> None:
    def num_tensors(seed: int) -> int:
        look = {"state": node("TinyState", after=["latents sampler", 0], when=seed)}
        return server.run(cached_workflow(seed=seed) | look)["state"]["state"][0]["tensors"]

    counts = [num_tensors(seed) for seed in range(100, 104)]
    assert counts[-1] == counts[1]


def test_the_report_says_what_was_done(server: Server) -> None:
    words = report(server, cached_workflow({**EVERY_SECOND, "correct": False}, seed=20))
    assert "sampler      euler, 20 steps" in words
    assert "13 computed, 7 cached" in words
    assert "65% of the model's calls, 1.54x at best" in words
    assert "corrected" not in words
    assert "corrected    7 cached steps" in report(server, cached_workflow(EVERY_SECOND, seed=21))


def test_a_second_prompt_begins_with_what_the_first_taught(server: Server) -> None:
    """A number of steps that no other test here has: what the server knows of the model is of this test alone."""
    wish = {"speedup": 2.0}
    first, second = (report(server, cached_workflow(wish, seed=seed, steps=22)) for seed in (24, 25))
    assert "learnt" not in first
    assert "learnt       from samplings of this kind before: 1" in second


def test_the_report_says_why_not(server: Server) -> None:
    assert "passed through: sampler heun calls the model several times a step" in report(
        server, cached_workflow(seed=22, sampler_name="heun", steps=6)
    )
    assert "nothing was cached: 3 steps are no more" in report(server, cached_workflow(seed=23, steps=3))


def test_two_experts_count_their_own_steps(server: Server) -> None:
    """The usual workflow of Wan 2.2: two models, each with its node, and two samplers that share the steps."""

    def expert(model: str, start: int, end: int, source: list[Any], *, first: bool) -> dict[str, Any]:
        return node(
            "KSamplerAdvanced",
            model=[model, 0],
            add_noise="enable" if first else "disable",
            noise_seed=5,
            steps=24,
            cfg=5.0,
            sampler_name="euler",
            scheduler="simple",
            positive=["model", 1],
            negative=["model", 2],
            latent_image=source,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise="enable" if first else "disable",
        )

    workflow = {
        "model": tiny(),
        "high": cached(**EVERY_SECOND),
        "low": cached(**EVERY_SECOND | {"setting": 3.0}),
        "first": expert("high", 0, 12, ["model", 3], first=True),
        "second": expert("low", 12, 24, ["first", 0], first=False),
        "one": node("MixCacheReport", model=["high", 0], samples=["first", 0]),
        "two": node("MixCacheReport", model=["low", 0], samples=["second", 0]),
        "pictures": node("SaveImage", images=["one", 0], filename_prefix="one"),
        "others": node("SaveImage", images=["two", 0], filename_prefix="two"),
    }
    outputs = server.run(workflow)
    assert "12 steps" in outputs["one"]["text"][0]
    assert "9 computed, 3 cached" in outputs["one"]["text"][0]
    assert "8 computed, 4 cached" in outputs["two"]["text"][0]


def test_compare_shows_how_far_a_clip_is(server: Server) -> None:
    workflow = plain_workflow(save="plain", seed=3) | cached_workflow({"policy": "hindsight"}, save="cached", seed=3)
    workflow |= {
        "frames": node("TinyDecode", samples=["plain sampler", 0]),
        "others": node("TinyDecode", samples=["cached sampler", 0]),
        "compare": node("MixCacheCompare", plain=["frames", 0], cached=["others", 0], gain=8.0),
        "same": node("MixCacheCompare", plain=["frames", 0], cached=["frames", 0], gain=8.0),
        "pictures": node("SaveImage", images=["compare", 0], filename_prefix="compare"),
        "nothing": node("SaveImage", images=["same", 0], filename_prefix="same"),
    }
    outputs = server.run(workflow)
    assert float(outputs["compare"]["text"][0].removesuffix(" dB")) > 30
    assert outputs["same"]["text"][0] == "the same to the bit"


def test_the_browser_sees_each_step_once(server: Server) -> None:
    """The progress and the previews that the server sends while the sampler begins anew at each correction."""

    async def steps(workflow: dict[str, Any]) -> tuple[list[int], int]:
        import aiohttp

        seen: list[int] = []
        num_previews = 0
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://{server.address}/ws?clientId=me") as socket,
        ):
            await asyncio.to_thread(server.queue, workflow, client_id="me", extra_data={"preview_method": "latent2rgb"})
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    num_previews += 1
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                event = json.loads(message.data)
                if event["type"] == "progress" and event["data"]["node"] == "latents sampler":
                    seen.append(event["data"]["value"])
                if event["type"] in ("execution_success", "execution_error", "execution_interrupted"):
                    break
        return seen, num_previews

    seen, num_previews = asyncio.run(steps(plain_workflow(seed=31)))
    assert seen == list(range(1, 21))
    assert num_previews >= 20
    assert asyncio.run(steps(cached_workflow(EVERY_SECOND, seed=31))) == (seen, num_previews)


def test_an_interrupted_run_leaves_nothing(server: Server) -> None:
    workflow = cached_workflow(seed=40, steps=400) | {"model": tiny(side=96, frames=17)}
    prompt = server.queue(workflow)
    while not server.get("/queue")["queue_running"]:
        pass
    asyncio.run(asyncio.sleep(3))
    server.post("/interrupt", {})
    assert server.wait(prompt)["status"]["status_str"] == "error"
    state = server.run({"model": tiny(), "state": node("TinyState", after=["model", 0], when=40)})["state"]["state"][0]
    assert state["engines"] == state["samplings"] == 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"start_percent": 0.8, "end_percent": 0.4}, "end_percent=0.4 must be over start_percent=0.8"),
        ({"end_percent": 1.5}, "end_percent=1.5 must be between 0 and 1"),
        ({"quality": "best of all"}, "not in"),
        ({"setting": -1.0}, "Value -1.0 smaller than min of 0.0"),
        ({"speedup": 11.0}, "Value 11.0 bigger than max of 10.0"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_before_anything_runs(
    server: Server, settings: dict[str, Any], says: str
) -> None:
    with pytest.raises(Refused) as refused:
        server.queue(cached_workflow(settings))
    assert says in str(refused.value)


def test_what_is_wrong_is_one_line_and_the_queue_goes_on(server: Server) -> None:
    wrong = cached_workflow({"policy": "every_nth", "setting": 0.5}, seed=50)
    assert server.error(wrong).startswith("setting=0.5 is the period of policy every_nth: period=0.5 ")
    assert server.error(cached_workflow({"speedup": 9.0}, seed=53)).startswith(
        "speedup=9 cannot be reached with 20 steps"
    )
    nothing = {
        "model": tiny(),
        "report": node("MixCacheReport", model=["model", 0], samples=["model", 3]),
        "picture": node("SaveImage", images=["report", 0], filename_prefix="none"),
    }
    assert server.error(nothing).startswith("MixCache Report: nothing was sampled with this model")
    two = {
        "model": tiny(),
        "cache": cached(),
        "easy": node(
            "EasyCache", model=["cache", 0], reuse_threshold=0.2, start_percent=0.15, end_percent=0.95, verbose=False
        ),
        **sampled("easy", seed=51),
    }
    assert server.error(two).strip() == (
        "EasyCache and MixCache are on one model, and each would hide calls from the other: keep one"
    )
    unheard = {"unheard": node("TinyUnheard")}
    of_class = cached_workflow(seed=54) | unheard | {"cache": node("MixCache", model=["unheard", 0], quality="high")}
    assert server.error(of_class).startswith("MixCache does not know the model class 'Unheard': bypass the MixCache")
    of_sampler = cached_workflow() | unheard
    of_sampler["latents sampler"] = node(
        "SamplerCustom",
        model=["cache", 0],
        add_noise=True,
        noise_seed=55,
        cfg=5.0,
        positive=["model", 1],
        negative=["model", 2],
        sampler=["unheard", 1],
        sigmas=["sigmas", 0],
        latent_image=["model", 3],
    )
    of_sampler["sigmas"] = node("BasicScheduler", model=["model", 0], scheduler="simple", steps=20, denoise=1.0)
    assert server.error(of_sampler).startswith("MixCache does not know the sampler 'unheard': bypass the MixCache")
    server.run(cached_workflow(seed=52))


def test_beside_easycache_on_the_same_graph(server: Server) -> None:
    """A hard setting, one training caption, at the model's own size: 3 dB more at least than whatever saves no more."""
    caption = "a small red circle moving left on a plain grey background"
    figures = measured(server, caption, "euler", seed=0, steps=20, cfg=7.0, methods=methods_of("euler"))
    pairs = [
        (figures[ours], other)
        for ours in OURS
        for name, other in figures.items()
        if name not in OURS and other["share"] >= figures[ours]["share"] - 0.05
    ]
    assert pairs
    assert all(our["psnr"] >= their["psnr"] + 3 for our, their in pairs)
