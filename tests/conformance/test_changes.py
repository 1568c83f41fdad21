"""What changes within a run, or between runs, on real pipelines built tiny: guidance, prompts, experts."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch
from conformance import cogvideox, easyanimate, kandinsky, wan
from conformance.variant import Variant

import mixcache
from mixcache.decision import Granularity
from mixcache.hosts.diffusers.overlay import hooks_on

pytestmark = pytest.mark.filterwarnings("ignore")
RARELY_COMPUTED = {"granularities": "step", "period": 9, "num_warmup_steps": 1, "num_cooldown_steps": 0}


def variant_of(family: Any, name: str) -> Variant:
    return next(variant for variant in family.VARIANTS if variant.name == name)


def generate(variant: Variant, pipeline: Any, **more: Any) -> torch.Tensor:
    generator = torch.Generator("cpu").manual_seed(0)
    return variant.output(pipeline(**{"generator": generator} | variant.arguments() | more))


@pytest.mark.parametrize("cut_after", [1, 2, 3])
@pytest.mark.parametrize("granularity", ["step", "cfg", "block"])
def test_guidance_cut_off_in_a_joined_run(granularity: str, cut_after: int) -> None:
    """The documented way to save time: from some step on the callback drops the unconditional half."""
    variant = variant_of(easyanimate, "easyanimate")
    pipeline = variant.build()

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step != cut_after:
            return {}
        pipe._guidance_scale = 1.0
        return {"prompt_embeds": tensors["prompt_embeds"].chunk(2)[-1]}

    more = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    settings = {"granularities": granularity, "num_warmup_steps": 1, "num_cooldown_steps": 0}
    with mixcache.enable(pipeline, "every_nth", **settings) as handle:
        generate(variant, pipeline, **more)
    entries = list(handle.trace)
    assert [{call.branch for call in entry.calls} for entry in entries] == [
        {"uncond", "cond"} if step <= cut_after else {"cond"} for step in range(len(entries))
    ]
    assert entries[cut_after + 1].granularity is Granularity.COMPUTE


def test_two_prompts_from_one_seed_are_not_a_guided_pair() -> None:
    variant = variant_of(cogvideox, "cogvideox-t2v-unguided")
    pipeline = variant.build()
    prompt = variant.arguments()["prompt"]
    generators = [torch.Generator("cpu").manual_seed(0) for _ in range(2)]
    with mixcache.enable(pipeline, "every_nth", granularities="step", num_warmup_steps=1) as handle:
        generate(variant, pipeline, prompt=[prompt, "something else"], generator=generators)
    assert {call.branch for entry in handle.trace for call in entry.calls} == {"cond"}


@pytest.mark.parametrize(("family", "name"), [(wan, "wan-t2v"), (kandinsky, "kandinsky5-t2v")])
def test_a_branch_that_comes_back_is_not_computed_beside_a_predicted_one(family: Any, name: str) -> None:
    """Guidance pauses for a step: uncond has no history when it returns, and cond is not to be predicted then."""
    variant = variant_of(family, name)
    pipeline = variant.build()
    scale = variant.arguments().get("guidance_scale", 5.0)

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pipe._guidance_scale = 1.0 if step == 1 else scale
        return {}

    with mixcache.enable(pipeline, "every_nth", **RARELY_COMPUTED) as handle:
        generate(variant, pipeline, callback_on_step_end=callback, num_inference_steps=6)
    steps = [{call.branch: call.computed for call in entry.calls} for entry in handle.trace]
    assert steps[2] == {"cond": True}
    assert steps[3] == {"cond": True, "uncond": True}
    assert steps[4] == {"cond": False, "uncond": False}
    assert all(len(set(step.values())) == 1 for step in steps)


def test_a_kandinsky_prompt_that_is_replaced_drops_what_was_cached() -> None:
    variant = variant_of(kandinsky, "kandinsky5-t2v")
    pipeline = variant.build()

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {"prompt_embeds_qwen": tensors["prompt_embeds_qwen"] + (1 if step == 2 else 0)}

    inputs = ["prompt_embeds_qwen"]
    with mixcache.enable(pipeline, "every_nth", **RARELY_COMPUTED) as handle:
        generate(
            variant,
            pipeline,
            callback_on_step_end=callback,
            callback_on_step_end_tensor_inputs=inputs,
            num_inference_steps=6,
        )
    assert [entry.granularity.value for entry in handle.trace] == [
        "compute",
        "compute",
        "step",
        "compute",
        "compute",
        "step",
    ]
    assert handle.summary()["num_calls_in_full"] == 1  # that with the new text, whose branch is then in doubt


# ---------------------------------------------------------------------------------------------------------- two experts


def test_a_generation_is_one_of_both_experts_also_after_one_that_was_broken_off() -> None:
    variant = variant_of(wan, "wan-t2v-two-experts")
    pipeline = variant.build()

    def stop(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        raise InterruptedError

    with mixcache.enable(pipeline, "always_compute") as handle:
        with pytest.raises(InterruptedError):
            generate(variant, pipeline, callback_on_step_end=stop)
        generate(variant, pipeline)
        generate(variant, pipeline)
    steps = list(range(variant.num_steps))
    generations = [[entry.step for entry in handle.trace.generation(index)] for index in (0, 1, 2)]
    assert generations == [[0], steps, steps]


def test_the_first_expert_holds_nothing_while_the_second_runs() -> None:
    variant = variant_of(wan, "wan-t2v-two-experts")
    pipeline = variant.build()
    held: list[int] = []

    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        held.append(handle.denoisers[0].engine.held_bytes)
        return {}

    with mixcache.enable(pipeline, "every_nth", granularities="step", num_warmup_steps=1) as handle:
        generate(variant, pipeline, callback_on_step_end=callback)
    assert max(held) > 0
    assert held[-1] == 0


def test_each_expert_is_measured_with_its_own_guidance_scale() -> None:
    variant = variant_of(wan, "wan-t2v-two-experts")
    pipeline = variant.build()
    with mixcache.enable(pipeline) as handle:
        generate(variant, pipeline, guidance_scale=3.0, guidance_scale_2=9.0)
        assert [denoiser.reader.guidance for denoiser in handle.denoisers] == [3.0, 9.0]


def test_a_swapped_expert_does_not_lock_the_pipeline() -> None:
    pipeline, other = (variant_of(wan, "wan-t2v-two-experts").build() for _ in range(2))
    mixcache.enable(pipeline, "every_nth", granularities="block")
    pipeline.transformer = other.transformer
    mixcache.disable(pipeline)
    mixcache.enable(pipeline).disable()
    assert not hooks_on(pipeline.transformer)
    assert not hooks_on(pipeline.transformer_2)


def test_an_expert_that_is_done_can_be_freed() -> None:
    variant = variant_of(wan, "wan-t2v-two-experts")
    pipeline = variant.build()
    handle = mixcache.enable(pipeline, "every_nth", granularities="block", num_warmup_steps=1, num_cooldown_steps=0)
    generate(variant, pipeline)
    first = weakref.ref(pipeline.transformer)
    pipeline.transformer = None
    gc.collect()
    assert first() is None
    assert handle.summary()["granularity_counts"]["block"] > 0


def test_the_cache_outlives_the_pipeline_with_the_transformer() -> None:
    variant = variant_of(wan, "wan-t2v")
    pipeline = variant.build()
    with mixcache.enable(pipeline, "every_nth", granularities="step", num_warmup_steps=1):
        expected = generate(variant, pipeline)
    handle = mixcache.enable(pipeline, "every_nth", granularities="step", num_warmup_steps=1)
    second = type(pipeline)(**pipeline.components)
    second.set_progress_bar_config(disable=True)
    del pipeline
    gc.collect()
    assert torch.equal(generate(variant, second), expected)
    assert handle.trace.counts()["step"] > 0
    mixcache.disable(second)
    assert not handle.is_enabled


def test_a_subclass_of_a_pipeline_is_that_pipeline() -> None:
    variant = variant_of(wan, "wan-t2v")
    pipeline = variant.build()

    class MyPipeline(type(pipeline)):
        pass

    pipeline.__class__ = MyPipeline
    with mixcache.enable(pipeline, "every_nth", granularities="step", num_warmup_steps=1) as handle:
        generate(variant, pipeline)
    assert handle.trace.counts()["step"] > 0


def test_a_transformer_compiled_as_a_whole_is_told_what_to_do() -> None:
    pipeline = variant_of(wan, "wan-t2v").build()
    pipeline.transformer = torch.compile(pipeline.transformer)
    with pytest.raises(TypeError, match="compile its blocks instead"):
        mixcache.enable(pipeline)
