"""What is around a model in a workflow: guidance, masks, batches, other nodes. In this process, without the server.

Reuse has a definition that needs no engine: at a cached step the guided velocity is that of the last computed one.
Every case is held against it, at the steps that the run itself says it cached.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import comfy.patcher_extension
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfyui_mixcache import learnt, report
from comfyui_mixcache.attachment import MAX_RUNS, attach, attachment_of
from comfyui_mixcache.samplers import SAMPLERS, Treatment, name_of
from comfyui_mixcache.sampling import in_force
from comfyui_mixcache.settings import Settings
from definitions import euler_taken_again, reusing
from tiny import SHIFT, TinyWan, model, pipeline, weights
from workflows import CAPTION

EVERY_SECOND = {"policy": "every_nth", "setting": 2.0}


def patched(**patches: Any) -> Any:
    """The model with some of ComfyUI's own nodes on it, by class: the arguments of each."""
    import comfy_extras.nodes_cfg
    import comfy_extras.nodes_model_advanced
    import comfy_extras.nodes_slg

    found, rooms = model(), (comfy_extras.nodes_cfg, comfy_extras.nodes_model_advanced, comfy_extras.nodes_slg)
    for name, arguments in patches.items():
        kind = next(getattr(room, name) for room in rooms if hasattr(room, name))
        if hasattr(kind, "execute"):
            found = kind.execute(found, **arguments).result[0]
        else:
            found = getattr(kind(), kind.FUNCTION)(found, **arguments)[0]
    return found


def with_lora() -> Any:
    clone = model().clone()
    name = "diffusion_model.blocks.3.ffn.0.weight"
    clone.add_patches({name: ("diff", (torch.full_like(clone.model.state_dict()[name], 0.01),))}, 1.0)
    return clone


def compiled() -> Any:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    clone = model().clone()
    set_torch_compile_wrapper(model=clone, backend="eager")
    return clone


def skipping_layers() -> Any:
    return patched(SkipLayerGuidanceDiT=SKIP_LAYERS)


@dataclass(frozen=True, kw_only=True)
class Case:
    made: Callable[[], Any] = model
    conditions: dict[str, Any] = field(default_factory=dict)
    ranged: bool = False
    masked: bool = False
    sampling: dict[str, Any] = field(default_factory=dict)
    num_in_full: int = 0
    is_corrected: bool = True
    """False where the definition of a sampler cannot say it, for what changes lies below or is no combination."""


SKIP_LAYERS = {
    "double_layers": "5",
    "single_layers": "",
    "scale": 2.0,
    "start_percent": 0.3,
    "end_percent": 0.8,
    "rescaling_scale": 0.0,
}
CASES = {
    "guidance": Case(),
    "guidance of 1": Case(sampling={"cfg": 1.0}),
    "two calls": Case(conditions={"negative_tokens": 5}),
    "a batch": Case(conditions={"batch": 2}),
    "half denoised": Case(sampling={"denoise": 0.6}),
    "a mask": Case(masked=True, is_corrected=False),
    "prompts in turn": Case(ranged=True, is_corrected=False),
    "cfg_zero_star": Case(made=lambda: patched(CFGZeroStar={}), is_corrected=False),
    "rescaled": Case(made=lambda: patched(RescaleCFG={"multiplier": 0.7}), is_corrected=False),
    "skip-layer guidance": Case(made=skipping_layers, num_in_full=1, is_corrected=False),
    "a LoRA": Case(made=with_lora),
    "compiled": Case(made=compiled, is_corrected=False),
}


def sample(
    patcher: Any, case: Case = CASES["guidance"], *, steps: int = 16, sampler: Any = "euler", seed: int = 1
) -> torch.Tensor:
    _, positive, negative, empty = TinyWan().load(CAPTION, "", 32, 5, **case.conditions)
    latents, mask = empty["samples"], None
    if case.masked or "denoise" in case.sampling:
        latents = torch.randn(latents.shape, generator=torch.Generator().manual_seed(9))
    if case.masked:
        mask = torch.zeros(1, *latents.shape[2:])
        mask[..., :2] = 1
    if case.ranged:
        early, late = ([text, {"start_percent": start, "end_percent": end}] for text, start, end in _ranges(positive))
        positive = [early, late]
    noise = comfy.sample.prepare_noise(latents, seed)
    given = {"cfg": 5.0, **case.sampling}
    cfg, more = given.pop("cfg"), {"noise_mask": mask, "seed": seed, "disable_pbar": True}
    with torch.inference_mode():
        if isinstance(sampler, str):
            how = (steps, cfg, sampler, "simple", positive, negative, latents)
            return comfy.sample.sample(patcher, noise, *how, **more, **given)
        sigmas = comfy.samplers.KSampler(patcher, steps, torch.device("cpu"), "euler", "simple", **given).sigmas
        return comfy.sample.sample_custom(patcher, noise, cfg, sampler, sigmas, positive, negative, latents, **more)


def _ranges(positive: Any) -> list[tuple[torch.Tensor, float, float]]:
    text = positive[0][0]
    return [(text, 0.0, 0.5), (text.flip(1), 0.5, 1.0)]


def run_of(patcher: Any) -> Any:
    return attachment_of(patcher).runs[-1]


@pytest.mark.parametrize("name", CASES)
def test_a_cached_clip_is_what_its_definition_says(name: str) -> None:
    case = CASES[name]
    patcher = case.made()
    cached = attach(patcher, Settings(**EVERY_SECOND, correct=False))
    clip = sample(cached, case)
    run = run_of(cached)
    words = report.did(run)
    assert words.count("step") >= 4
    assert words.count("in full") == case.num_in_full
    wanted = sample(reusing(patcher, [word == "step" for word in words]), case)
    torch.testing.assert_close(clip, wanted, rtol=2e-3, atol=2e-3)
    assert not torch.equal(clip, plain := sample(patcher, case))
    everything = attach(patcher, Settings(**EVERY_SECOND, start_percent=0.99))
    assert torch.equal(sample(everything, case), plain)


@pytest.mark.parametrize("name", ["guidance", "two calls", "a batch", "cfg_zero_star"])
def test_negative_prompts_are_left_out_as_the_definition_says(name: str) -> None:
    case = CASES[name]
    patcher = case.made()
    cached = attach(patcher, Settings(**EVERY_SECOND, leave_out="negative prompts", correct=False))
    clip = sample(cached, case)
    run = run_of(cached)
    words = report.did(run)
    assert words.count("cfg") >= 4
    assert report.share_computed(run) == pytest.approx(1 - words.count("cfg") / 2 / run.num_steps)
    wanted = sample(reusing(patcher, [word == "cfg" for word in words], negative=True), case)
    torch.testing.assert_close(clip, wanted, rtol=2e-3, atol=2e-3)
    assert not torch.equal(clip, sample(patcher, case))


def test_without_a_negative_prompt_there_is_nothing_to_leave_out() -> None:
    case = CASES["guidance of 1"]
    cached = attach(model(), Settings(**EVERY_SECOND, leave_out="negative prompts"))
    assert torch.equal(sample(cached, case), sample(model(), case))
    assert "nothing was cached: no history" in report.text(run_of(cached))


def test_a_prompt_begins_and_ends_where_comfyui_says_so() -> None:
    """It compares in the precision of the noise levels: a float32 of 0.1 is over 0.1 as Python has it."""
    sigma = torch.tensor(0.1)
    early, late = {"uuid": 1, "timestep_end": 0.1}, {"uuid": 2, "timestep_start": 0.1}
    assert float(sigma) > 0.1
    assert bool(sigma <= 0.1)
    assert in_force([[early, late]], sigma) == (((1,), (2,)),)
    assert in_force([[early, late], None], torch.tensor(0.2)) == (((1,),), None)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.is_corrected])
def test_corrected_steps_are_taken_again_as_the_definition_says(name: str) -> None:
    case = CASES[name]
    cached = attach(case.made(), Settings(**EVERY_SECOND))
    clip = sample(cached, case)
    run = run_of(cached)
    words = report.did(run)
    assert run.num_corrected == words.count("step") >= 3
    wanted = sample(case.made(), case, sampler=euler_taken_again([word == "step" for word in words]))
    assert float((clip - wanted).norm() / wanted.norm()) < 2e-3


@pytest.mark.parametrize("name", ["cfg_zero_star"])
def test_guidance_that_is_no_combination_is_not_corrected(name: str) -> None:
    cached = attach(CASES[name].made(), Settings(**EVERY_SECOND))
    sample(cached, CASES[name])
    assert run_of(cached).num_corrected == 0


@pytest.mark.parametrize("speedup", [1.5, 2.0])
def test_a_wished_speedup_is_what_the_calls_come_to(speedup: float) -> None:
    """Under a wild beginning the first sampling falls short of it rather than break; the third has learnt."""
    of_model = weights.patcher(pipeline().transformer, SHIFT)
    reached = []
    for _ in range(3):
        cached = attach(of_model, Settings(speedup=speedup))
        sample(cached, steps=20)
        reached.append(1 / report.share_computed(run_of(cached)))
    assert 0.75 * speedup <= reached[0] <= 1.1 * speedup
    assert reached[-1] == pytest.approx(speedup, rel=0.1)


def test_a_wish_begins_with_what_samplings_of_the_same_model_taught() -> None:
    first, other = (weights.patcher(pipeline().transformer, SHIFT) for _ in range(2))
    reports = []
    for of_model, steps in ((first, 20), (first, 20), (other, 20), (first, 24), (first, 20)):
        cached = attach(of_model, Settings(speedup=2.0))
        sample(cached, steps=steps)
        reports.append(run_of(cached))
    assert [run.num_before for run in reports] == [0, 1, 0, 0, 2]
    assert "learnt       from samplings of this kind before: 1" in report.text(reports[1])
    assert "learnt" not in report.text(reports[0])
    kinds = learnt._KNOWN[first.model]
    assert [known.num_generations for known in kinds.values()] == [1, 3]
    assert [next(iter(known.limits.values()))[1] for known in kinds.values()] == [1, 3]
    assert all(name == "euler" for name, _ in kinds)
    # later samplings do not count steps, and follow the limit that was learnt
    assert not any(entry.reason == "all that is left may be computed" for entry in reports[1].trace)
    before, of = len(learnt._KNOWN), weakref.ref(first.model)
    del first, of_model, cached, kinds
    gc.collect()
    assert of() is None
    assert len(learnt._KNOWN) == before - 1


def test_a_new_kind_of_sampling_begins_with_the_rates_of_another_and_kinds_are_few() -> None:
    class Model: ...

    one = Model()
    learnt.learnt_of(one, ("euler", (1.0, 0.0))).see(0.5, 2.0)
    second = learnt.learnt_of(one, ("euler", (1.0, 0.5, 0.0)))
    assert second.log_rates == learnt.learnt_of(one, ("euler", (1.0, 0.0))).log_rates != {}
    second.see(0.5, 9.0)
    assert second.log_rates != learnt.learnt_of(one, ("euler", (1.0, 0.0))).log_rates
    for steps in range(3 * learnt.MAX_KINDS):
        learnt.learnt_of(one, ("euler", (1.0,) * steps))
    assert len(learnt._KNOWN[one]) == learnt.MAX_KINDS


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"speedup": 2.0, "policy": "every_nth"}, "speedup=2 is for policy hold: set policy to hold"),
        ({"speedup": 2.0, "setting": 0.3}, "speedup=2 and setting=0.3 are both given: set one of them to 0"),
        ({"speedup": 0.5}, "speedup=0.5 must be 1 or more, such as 2, or 0 to leave it to the quality"),
        (
            {"setting": -1.0},
            "setting=-1 is the error of policy hold: error=-1.0 must be a finite number over 0",
        ),
        ({"leave_out": "both"}, "leave_out='both' is not for policy hold: set it to hindsight or every_nth"),
        ({"quality": "best"}, "quality='best' is none of high, balanced, fast"),
    ],
)
def test_settings_that_do_not_go_together_are_one_line(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Settings(**settings)


def test_every_sampler_of_comfyui_is_in_the_table() -> None:
    names = {name_of(comfy.samplers.sampler_object(name)) for name in comfy.samplers.SAMPLER_NAMES}
    assert names - set(SAMPLERS) == set()
    assert set(SAMPLERS) - names == {"ar_video"}


ONE_CALL = [
    name
    for name in comfy.samplers.SAMPLER_NAMES
    if SAMPLERS[name_of(comfy.samplers.sampler_object(name))] is not Treatment.PASSED and "gpu" not in name
]
BEGUN_ANEW = ("euler", "ddim", "dpmpp_2m", "res_multistep", "gradient_estimation", "uni_pc")
"""Two that go by the present output alone, and some that remember earlier ones."""


@pytest.mark.parametrize("sampler", ONE_CALL)
def test_under_each_sampler_of_one_call_a_step(sampler: str) -> None:
    cached = attach(model(), Settings(**EVERY_SECOND, correct=False))
    clip = sample(cached, steps=12, sampler=sampler)
    run = run_of(cached)
    assert run.in_full == {}
    words = report.did(run)
    assert words.count("step") == 3
    wanted = sample(reusing(model(), [word == "step" for word in words]), steps=12, sampler=sampler)
    assert float((clip - wanted).norm() / wanted.norm()) < 1e-3


@pytest.mark.parametrize("sampler", BEGUN_ANEW)
def test_taken_again_where_nothing_changes_nothing_is_changed(sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model that gives one velocity again and again, the corrected clip is the plain one."""
    monkeypatch.setitem(SAMPLERS, name_of(comfy.samplers.sampler_object(sampler)), Treatment.CORRECTED)
    still = model().clone()
    velocity = torch.randn(1, 20, 2, 4, 4, generator=torch.Generator().manual_seed(2))
    still.set_model_unet_function_wrapper(
        lambda apply, given: given["input"] - given["timestep"].reshape(-1, 1, 1, 1, 1) * velocity
    )
    cached = attach(still, Settings(**EVERY_SECOND))
    clip, plain = sample(cached, sampler=sampler), sample(still, sampler=sampler)
    assert run_of(cached).num_corrected >= 3
    torch.testing.assert_close(clip, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    "sampler", ["heun", "dpm_2", "dpmpp_2s_ancestral", "seeds_2", "dpm_adaptive", "sa_solver_pece"]
)
def test_several_calls_a_step_are_passed_through_to_the_bit(sampler: str) -> None:
    cached = attach(model(), Settings())
    assert torch.equal(sample(cached, steps=4, sampler=sampler), sample(model(), steps=4, sampler=sampler))
    assert "several times a step" in report.text(run_of(cached))


def test_noise_that_an_option_brings_is_not_corrected() -> None:
    from comfyui_mixcache.samplers import treatment_of

    assert treatment_of(comfy.samplers.ksampler("euler")) is Treatment.CORRECTED
    assert treatment_of(comfy.samplers.ksampler("euler", {"s_churn": 0.5})) is Treatment.CACHED


def test_an_unknown_sampler_is_one_line() -> None:
    def sample_of_my_own() -> None: ...

    from comfyui_mixcache.samplers import treatment_of

    with pytest.raises(ValueError, match="does not know the sampler 'of_my_own': bypass the MixCache node, or sample"):
        treatment_of(comfy.samplers.KSAMPLER(sample_of_my_own))


def test_an_old_comfyui_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(comfy.patcher_extension.WrappersMP, "CALC_COND_BATCH")
    with pytest.raises(ValueError, match="needs a newer ComfyUI: this one has no wrappers CALC_COND_BATCH; update"):
        attach(model(), Settings())


def test_the_model_is_left_as_it_was() -> None:
    before = model()
    options = {name: dict(value) if isinstance(value, dict) else value for name, value in before.model_options.items()}
    cached = attach(before, Settings())
    twice = attach(cached, Settings(**EVERY_SECOND))
    assert before.model_options == options
    assert not before.wrappers
    kind = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
    assert len(twice.get_wrappers(kind, "mixcache")) == len(cached.get_wrappers(kind, "mixcache")) == 1
    assert attachment_of(before) is None


def test_the_report_finds_the_run_of_the_latents() -> None:
    cached = attach(model(), Settings(**EVERY_SECOND))
    first = sample(cached, steps=8)
    second = sample(cached, steps=10)
    attachment = attachment_of(cached)
    assert attachment.run_of(first).num_steps == 8
    assert attachment.run_of(second).num_steps == 10
    for _ in range(MAX_RUNS + 1):
        last = sample(cached, steps=4, seed=5)
    assert len(attachment.runs) == MAX_RUNS
    assert attachment.run_of(last).num_steps == 4


def test_pictures_have_a_bar_for_each_step() -> None:
    cached = attach(model(), Settings(**EVERY_SECOND))
    sample(cached, steps=12)
    picture = report.picture(run_of(cached))
    assert picture.shape == (1, 320, 960, 3)
    blue = torch.tensor([0x88, 0xC0, 0xD0]) / 255
    row = (picture[0] - blue).abs().amax(-1).lt(0.02).sum(1)
    other = report.picture(run_of_sampled(attach(model(), Settings(start_percent=0.99))))
    assert row.max() > 3 * (other[0] - blue).abs().amax(-1).lt(0.02).sum(1).max()


def run_of_sampled(patcher: Any) -> Any:
    sample(patcher, steps=12)
    return run_of(patcher)
