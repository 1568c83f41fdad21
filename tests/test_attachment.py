"""enable() and disable() on a real WanPipeline, tiny and with random weights: 4 blocks, 2 of them in the span."""

from __future__ import annotations

import gc
import logging
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
from diffusers import FluxTransformer2DModel, HookRegistry, Wan22Blocks, WanBlocks, WanTransformer3DModel
from diffusers.hooks import ModelHook
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from peft import LoraConfig, get_peft_model
from torch._dynamo.testing import CompileCounter
from traces import letters

import mixcache
from mixcache.core.engine import Engine
from mixcache.decision import Granularity
from mixcache.hosts.diffusers import overlay
from mixcache.hosts.diffusers.attachment import attach
from mixcache.hosts.diffusers.hooks import PipelineHook
from mixcache.policies import Bounded, EveryNth
from mixcache.trace import Trace

PROMPT = "a small red circle moving left"
OTHER_PROMPT = "a big blue square moving right"
ALWAYS_WARM = {"delta_1": 50.0, "delta_2": 100.0}
"""Thresholds for random weights: the deviation is always small enough, so the interval grows to its maximum."""

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "always_compute": ("always_compute", {}),
    "step": ("every_nth", {"granularities": "step", "period": 2}),
    "step, order 1": ("every_nth", {"granularities": "step", "period": 2.5, "predictor": "line"}),
    "step, corrected": ("every_nth", {"granularities": "step", "period": 2.5, "predictor": "line", "corrector": True}),
    "cfg": ("every_nth", {"granularities": "cfg", "period": 3}),
    "cfg, order 1": ("every_nth", {"granularities": "cfg", "period": 2, "predictor": "line"}),
    "block": ("every_nth", {"granularities": "block", "period": 2}),
    "block, order 2": ("every_nth", {"granularities": "block", "period": 3, "predictor": "parabola"}),
    "hold": ("hold", {"error": 0.9}),
    "mixcache": ("mixcache", ALWAYS_WARM),
    "mixcache, order 1": (
        "mixcache",
        {**ALWAYS_WARM, "predictor": "line", "num_warmup_steps": 2, "num_cooldown_steps": 0},
    ),
}
MIXED = ["step, order 1", "cfg", "block", "mixcache"]
Generate = Callable[..., torch.Tensor]


def inputs(transformer: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "hidden_states": torch.randn(1, 4, 2, 4, 4, generator=generator),
        "timestep": torch.tensor([500]),
        "encoder_hidden_states": torch.randn(1, 24, 16, generator=generator),
    }


def call(
    transformer: Any,
    step: int,
    arguments: dict[str, Any],
    branch: str = "cond",
    num_steps: int | None = 10,
    **more: Any,
) -> Any:
    """One call as a pipeline makes it."""
    context = {"step_index": step, "num_inference_steps": num_steps, "sigma": 1 - step / 10}
    with torch.no_grad(), transformer.cache_context(branch, **context):
        return transformer(**arguments, **more)


class Outputs:
    """Every output of the transformer in a generation, cond and uncond in turn, seen from outside."""

    covers = ("__call__",)

    def __init__(self, transformer: torch.nn.Module) -> None:
        self.all: list[torch.Tensor] = []
        overlay.put_on(transformer, self)

    def call(self, module: Any, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        self.all.append(output[0].clone())
        return output

    @property
    def cond(self) -> list[torch.Tensor]:
        return self.all[0::2]

    @property
    def uncond(self) -> list[torch.Tensor]:
        return self.all[1::2]


# ----------------------------------------------------------------------------------------------- nothing is changed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scheduler", ["unipc", "euler"])
def test_always_compute_and_detached_are_bit_identical_to_plain(
    make_pipeline: Callable[..., Any], generate: Generate, scheduler: str, dtype: str
) -> None:
    pipeline = make_pipeline(scheduler, dtype)
    plain = generate(pipeline)
    assert plain.shape == (1, 4, 2, 2, 2)
    with mixcache.enable(pipeline, "always_compute") as handle:
        assert torch.equal(generate(pipeline), plain)
        assert (handle.summary()["num_steps"], handle.summary()["computed_share"]) == (12, 1.0)
    assert torch.equal(generate(pipeline), plain)
    with mixcache.enable(pipeline, "every_nth", period=2):
        assert not torch.equal(generate(pipeline), plain)
    assert torch.equal(generate(pipeline), plain)


def test_computing_every_step_with_every_hook_in_place_is_bit_identical(pipeline: Any, generate: Generate) -> None:
    plain = generate(pipeline)
    # histories are kept, residuals recorded and deviations measured, but the threshold lets nothing be cached
    with mixcache.enable(pipeline, "mixcache", delta_1=0.0, delta_2=0.0) as handle:
        assert torch.equal(generate(pipeline), plain)
    assert letters(handle.trace) == "." * 12
    assert handle.summary()["peak_bytes"] > 0


# ------------------------------------------------------------------------------------------- the trace tells the truth


@pytest.mark.parametrize("case", CASES)
def test_calls_and_blocks_that_ran_are_those_of_the_trace(
    pipeline: Any, generate: Generate, counted: Callable[..., Any], case: str
) -> None:
    policy, settings = CASES[case]
    with mixcache.enable(pipeline, policy, **settings) as handle, counted(pipeline.transformer) as work:
        generate(pipeline)
    calls = [c for entry in handle.trace for c in entry.calls]
    assert len(calls) == 24
    assert work.num_calls == sum(c.computed for c in calls)
    assert work.num_blocks == sum(c.num_blocks for c in calls)
    assert handle.summary()["computed_share"] == work.num_blocks / (24 * 4)
    assert [entry.step for entry in handle.trace] == list(range(12))


@pytest.mark.parametrize(
    ("case", "pattern", "num_blocks"),
    [
        ("always_compute", "............", 96),
        ("step", ".....s.s.s..", 96 - 3 * 8),
        ("step, order 1", ".....ss.s.s.", 96 - 4 * 8),
        ("cfg", ".....cc.cc..", 96 - 4 * 4),
        ("block", ".....b.b.b..", 96 - 3 * 4),
        ("block, order 2", ".....bb.bb..", 96 - 4 * 4),
    ],
)
def test_schedules_by_hand(
    pipeline: Any, generate: Generate, counted: Callable[..., Any], case: str, pattern: str, num_blocks: int
) -> None:
    policy, settings = CASES[case]
    with mixcache.enable(pipeline, policy, **settings) as handle, counted(pipeline.transformer) as work:
        generate(pipeline)
    assert (letters(handle.trace), work.num_blocks) == (pattern, num_blocks)


def test_mixcache_caches_in_cycles_with_more_than_one_granularity(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "mixcache", **ALWAYS_WARM, max_interval=3, num_warmup_steps=2) as handle:
        generate(pipeline, num_steps=20)
    pattern = letters(handle.trace)
    assert pattern.startswith("..")
    assert pattern.endswith(".")
    assert len(set(pattern) - {"."}) >= 2
    assert 1 <= max(len(run) for run in pattern.split(".")) <= 3
    for entry in handle.trace:
        assert (entry.deviation is not None) == (entry.granularity is Granularity.COMPUTE and entry.step > 0)


# --------------------------------------------------------------------------------------------- cond, uncond, blocks


def test_step_repeats_both_branches(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="step", period=3):
        outputs = Outputs(pipeline.transformer)
        generate(pipeline)
    for cached, computed in ((5, 4), (6, 4), (8, 7), (9, 7)):
        assert torch.equal(outputs.cond[cached], outputs.cond[computed])
        assert torch.equal(outputs.uncond[cached], outputs.uncond[computed])
    assert not torch.equal(outputs.cond[4], outputs.uncond[4])


def test_cfg_adds_the_last_difference_to_cond(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="cfg", period=3) as handle:
        outputs = Outputs(pipeline.transformer)
        generate(pipeline)
    assert letters(handle.trace) == ".....cc.cc.."
    for cached, computed in ((5, 4), (6, 4), (8, 7), (9, 7)):
        difference = outputs.uncond[computed] - outputs.cond[computed]
        assert torch.equal(outputs.uncond[cached], outputs.cond[cached] + difference)
        assert not torch.equal(outputs.cond[cached], outputs.cond[computed])


def test_step_of_order_1_extrapolates_in_sigma(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="step", period=3, predictor="line") as handle:
        outputs = Outputs(pipeline.transformer)
        generate(pipeline)
    sigma = [entry.sigma for entry in handle.trace]
    for cached, last, earlier in ((5, 4, 3), (6, 4, 3), (8, 7, 4), (9, 7, 4)):
        slope = (outputs.cond[last] - outputs.cond[earlier]) / (sigma[last] - sigma[earlier])
        line = outputs.cond[last] + slope * (sigma[cached] - sigma[last])
        torch.testing.assert_close(outputs.cond[cached], line, rtol=1e-4, atol=1e-5)


def test_sigma_in_the_trace_is_the_schedulers(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "every_nth") as handle:
        generate(pipeline)
    assert [entry.sigma for entry in handle.trace] == [float(sigma) for sigma in pipeline.scheduler.sigmas[:12]]


@pytest.mark.parametrize("span", [{}, {"span_first": 0, "span_after": 0}, {"span_first": 2, "span_after": 1}])
def test_block_with_identical_inputs_gives_the_computed_output(
    pipeline: Any, counted: Callable[..., Any], span: dict[str, int]
) -> None:
    transformer = pipeline.transformer
    num_skipped = 4 - span.get("span_first", 1) - span.get("span_after", 1)
    cond, uncond = inputs(transformer, seed=1), inputs(transformer, seed=2)
    with mixcache.enable(pipeline, "every_nth", granularities="block", period=2, num_warmup_steps=1, **span) as handle:
        computed = [call(transformer, s, x, b)[0] for s in (0, 1) for x, b in ((cond, "cond"), (uncond, "uncond"))]
        with counted(transformer) as work:
            cached = [call(transformer, 2, x, b)[0] for x, b in ((cond, "cond"), (uncond, "uncond"))]
        assert (work.num_calls, work.num_blocks) == (2, 2 * (4 - num_skipped))
    torch.testing.assert_close(cached[0], computed[2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cached[1], computed[3], rtol=1e-5, atol=1e-5)
    assert (cached[0] - cached[1]).abs().mean() > 0.01
    assert letters(handle.trace) == "..b"


def test_block_adds_the_old_residual_to_a_new_input(pipeline: Any) -> None:
    transformer = pipeline.transformer
    old = inputs(transformer, seed=1)
    new = inputs(transformer, seed=2) | {"encoder_hidden_states": old["encoder_hidden_states"]}
    states: list[torch.Tensor] = []
    inner = transformer.blocks[0].register_forward_hook(lambda module, args, output: states.append(output.clone()))
    outer = transformer.blocks[3].norm1.register_forward_pre_hook(lambda module, args: states.append(args[0].clone()))
    with mixcache.enable(pipeline, "every_nth", granularities="block", period=2, num_warmup_steps=1):
        for step, arguments in enumerate((old, old, new)):
            call(transformer, step, arguments)
    inner.remove()
    outer.remove()
    before, after = states[0::2], states[1::2]
    assert not torch.equal(before[2], before[1])
    torch.testing.assert_close(after[2] - before[2], after[1] - before[1], rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------------------------------------------- one after another


@pytest.mark.parametrize("case", MIXED)
def test_every_run_of_one_handle_is_that_of_a_fresh_pipeline(
    make_pipeline: Callable[..., Any], generate: Generate, case: str
) -> None:
    policy, settings = CASES[case]
    runs: list[dict[str, Any]] = [
        {"prompt": PROMPT},
        {"prompt": OTHER_PROMPT},
        {"prompt": [PROMPT, OTHER_PROMPT]},
        {"prompt": PROMPT, "width": 32},
        {"prompt": PROMPT, "num_steps": 9},
        {"prompt": PROMPT, "guidance_scale": 1.0},
        {"prompt": PROMPT},
    ]
    pipeline = make_pipeline()
    with mixcache.enable(pipeline, policy, **settings) as handle:
        together = [generate(pipeline, **run) for run in runs]
    assert handle.trace.num_generations == len(runs)
    for run, latents in zip(runs, together, strict=True):
        fresh = make_pipeline()
        mixcache.enable(fresh, policy, **settings)
        assert torch.equal(generate(fresh, **run), latents)
    assert torch.equal(together[0], together[-1])
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("case", MIXED)
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_broken_off_leaves_nothing_behind(
    make_pipeline: Callable[..., Any], generate: Generate, case: str, error: type[BaseException]
) -> None:
    def stop(pipeline: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        if step == 6:
            raise error("enough")
        return values

    policy, settings = CASES[case]
    fresh = make_pipeline()
    mixcache.enable(fresh, policy, **settings)
    expected = generate(fresh, OTHER_PROMPT)
    pipeline = make_pipeline()
    handle = mixcache.enable(pipeline, policy, **settings)
    with pytest.raises(error):
        generate(pipeline, PROMPT, callback_on_step_end=stop)
    assert torch.equal(generate(pipeline, OTHER_PROMPT), expected)
    assert [len(handle.trace.generation(g)) for g in (0, 1)] == [7, 12]
    handle.disable()
    assert torch.equal(generate(pipeline), generate(make_pipeline()))


def test_an_error_inside_the_transformer_leaves_nothing_behind(
    make_pipeline: Callable[..., Any], generate: Generate
) -> None:
    pipeline, seen = make_pipeline(), []

    def fail(*_: Any) -> None:
        seen.append(1)
        if len(seen) == 15:
            raise RuntimeError("out of memory")

    handle = mixcache.enable(pipeline, "every_nth", granularities="block")
    hook = pipeline.transformer.blocks[0].register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        generate(pipeline)
    assert handle.summary()["held_bytes"] == 0
    hook.remove()
    fresh = make_pipeline()
    mixcache.enable(fresh, "every_nth", granularities="block")
    assert torch.equal(generate(pipeline), generate(fresh))


@pytest.mark.parametrize("case", [*MIXED, "block, order 2", "mixcache, order 1", "step, corrected", "hold"])
def test_a_trace_replays_to_the_same_bits(pipeline: Any, generate: Generate, tmp_path: Path, case: str) -> None:
    policy, settings = CASES[case]
    with mixcache.enable(pipeline, policy, **settings) as handle:
        recorded = generate(pipeline)
    path = tmp_path / "trace.jsonl"
    handle.trace.save(path)
    assert set(letters(handle.trace)) != {"."}
    for trace in (handle.trace, Trace.load(path), path):
        with mixcache.enable(pipeline, "replay", trace=trace) as again:
            assert torch.equal(generate(pipeline), recorded)
        decisions = [[(e.step, e.granularity, e.predictor, e.calls) for e in t] for t in (handle.trace, again.trace)]
        assert decisions[0] == decisions[1]


# ------------------------------------------------------------------------------------------------ without guidance


@pytest.mark.parametrize("case", CASES)
def test_without_uncond_branch(pipeline: Any, generate: Generate, counted: Callable[..., Any], case: str) -> None:
    policy, settings = CASES[case]
    with mixcache.enable(pipeline, policy, **settings) as handle, counted(pipeline.transformer) as work:
        latents = generate(pipeline, guidance_scale=1.0)
    assert bool(latents.isfinite().all())
    assert handle.trace.counts()["cfg"] == 0
    assert {c.branch for entry in handle.trace for c in entry.calls} == {"cond"}
    assert work.num_blocks == sum(c.num_blocks for entry in handle.trace for c in entry.calls)
    if case not in ("always_compute", "cfg", "cfg, order 1"):
        assert work.num_blocks < 48


# --------------------------------------------------------------------------------------------------------- errors


def test_enable_twice(pipeline: Any) -> None:
    handle = mixcache.enable(pipeline)
    with pytest.raises(ValueError, match=r"enabled on this transformer already; call handle.disable\(\) or mixcache"):
        mixcache.enable(pipeline)
    mixcache.disable(pipeline)
    assert not handle.is_enabled
    handle.disable()
    with pytest.raises(ValueError, match="mixcache is not enabled on this pipeline"):
        mixcache.disable(pipeline)
    mixcache.enable(pipeline).disable()


def test_disable_what_was_never_a_pipeline() -> None:
    with pytest.raises(ValueError, match="mixcache is not enabled on this pipeline"):
        mixcache.disable(object())


@pytest.mark.parametrize(
    ("policy", "settings", "message"),
    [
        ("every_nht", {}, "unknown policy 'every_nht'; did you mean 'every_nth'?"),
        ("every_nth", {"periode": 2}, "unknown setting of policy every_nth 'periode'; did you mean 'period'?"),
        ("every_nth", {"period": 0}, "period=0 must be a number of at least 1"),
        (
            "every_nth",
            {"granularities": "block", "span_first": 3, "span_after": 1},
            "span_first=3 and span_after=1 leave none of the 4 blocks to skip",
        ),
        (mixcache.MixCacheConfig(policy="always_compute"), {"max_age": 2}, "settings max_age beside a MixCacheConfig"),
    ],
)
def test_wrong_settings_attach_nothing(pipeline: Any, policy: Any, settings: dict[str, Any], message: str) -> None:
    before = dict(pipeline.transformer.__dict__)
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        mixcache.enable(pipeline, policy, **settings)
    assert pipeline.transformer.__dict__ == before
    mixcache.enable(pipeline)


def test_a_span_too_large_matters_only_to_block(pipeline: Any) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="step", span_first=9, span_after=9) as handle:
        assert handle.engine.span.num_skipped == 0


def test_what_is_no_pipeline_is_told_in_one_sentence(pipeline: Any) -> None:
    with pytest.raises(TypeError, match=r"WanTransformer3DModel is a model, not a pipeline; give the pipeline that"):
        mixcache.enable(pipeline.transformer)
    with (
        mixcache.enable(pipeline) as handle,
        pytest.raises(TypeError, match="this is the handle of a pipeline that was enabled, not a pipeline"),
    ):
        mixcache.enable(handle)
    assert "forward" not in pipeline.transformer.__dict__


@pytest.mark.parametrize("policy", [EveryNth, {"policy": "hindsight"}, 3])
def test_what_is_no_policy_attaches_nothing(pipeline: Any, policy: Any) -> None:
    with pytest.raises(TypeError, match=r"^policy=.* no policy"):
        mixcache.enable(pipeline, policy)
    assert "forward" not in pipeline.transformer.__dict__


@pytest.mark.parametrize(
    ("wrap", "way_out"),
    [
        (
            lambda model: get_peft_model(model, LoraConfig(target_modules=["to_q"])),
            r"wrapped in PeftModel, .*: pipe.transformer = pipe.transformer.get_base_model\(\); or load a LoRA by "
            "pipe.load_lora_weights",
        ),
        (torch.nn.DataParallel, "wrapped in DataParallel, .*: pipe.transformer = pipe.transformer.module"),
    ],
)
def test_a_wrapped_transformer_is_told_how_to_be_unwrapped(
    pipeline: Any, generate: Generate, wrap: Callable[[Any], Any], way_out: str
) -> None:
    wrapped = pipeline.transformer = wrap(pipeline.transformer)
    with pytest.raises(TypeError, match=way_out) as error:
        mixcache.enable(pipeline)
    assert "ModelRow" not in str(error.value)
    pipeline.transformer = wrapped.module if "DataParallel" in way_out else wrapped.get_base_model()
    with mixcache.enable(pipeline, "every_nth") as handle:
        generate(pipeline)
    assert handle.trace.counts()["step"] == 3


class OwnTransformer(WanTransformer3DModel):
    """Somebody's Wan."""


def test_a_transformer_of_a_derived_class_is_as_that_class(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "every_nth"):
        expected = generate(pipeline)
    pipeline.transformer.__class__ = OwnTransformer
    with mixcache.enable(pipeline, "every_nth") as handle:
        assert torch.equal(generate(pipeline), expected)
    assert handle.row.transformer == "WanTransformer3DModel"


@pytest.mark.parametrize(
    ("blocks", "names"), [(WanBlocks(), "no transformer"), (Wan22Blocks(), "no transformer and no transformer_2")]
)
def test_a_modular_pipeline_whose_components_are_not_loaded(blocks: Any, names: str) -> None:
    empty = blocks.init_pipeline()
    with pytest.raises(
        TypeError, match=rf"has {names} yet: its components are not loaded; call pipe.load_components\(\)$"
    ):
        mixcache.enable(empty)


class OddTransformer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = torch.nn.ModuleList([torch.nn.Linear(1, 1)])
        self.layers = torch.nn.ModuleList([torch.nn.Linear(1, 1) for _ in range(3)])


class OddPipelineOfFlux:
    def __init__(self) -> None:
        self.transformer = FluxTransformer2DModel(
            num_layers=1, num_single_layers=2, attention_head_dim=16, num_attention_heads=1, axes_dims_rope=(4, 4, 8)
        )


class OddPipeline:
    transformer = OddTransformer()


def test_an_unsupported_transformer_is_told_which_row_to_write() -> None:
    with pytest.raises(TypeError) as error:
        mixcache.enable(OddPipeline())
    text = str(error.value)
    assert text.startswith("OddPipeline with OddTransformer is not supported (`mixcache models` lists what is")
    assert 'ModelRow(transformer="OddTransformer", pipelines=("OddPipeline",), blocks=("layers",))' in text
    with pytest.raises(TypeError, match=r'blocks=\("transformer_blocks", "single_transformer_blocks"\)\)$'):
        mixcache.enable(OddPipelineOfFlux())
    with pytest.raises(TypeError, match="object has no transformer to attach to"):
        mixcache.enable(object())


# ---------------------------------------------------------------------------------------------------- attach, detach


@pytest.mark.parametrize("case", ["always_compute", "step", "block", "mixcache"])
@pytest.mark.parametrize("after_a_run", [False, True])
def test_disable_restores(pipeline: Any, generate: Generate, case: str, after_a_run: bool) -> None:
    policy, settings = CASES[case]
    generate(pipeline)  # diffusers leaves a registry of hooks on a transformer that was called
    transformer, blocks = pipeline.transformer, list(pipeline.transformer.blocks)
    objects = [pipeline, pipeline.scheduler, transformer, *blocks]
    before = [(type(each), set(vars(each))) for each in objects]
    handle = mixcache.enable(pipeline, policy, **settings)
    assert overlay.hooks_on(pipeline)
    assert overlay.hooks_on(transformer)
    assert all(bool(overlay.hooks_on(block)) == (case in ("block", "mixcache")) for block in blocks)
    if after_a_run:
        generate(pipeline)
    handle.disable()
    assert [(type(each), set(vars(each))) for each in objects] == before


def test_attaching_after_a_plain_run_reaches_the_hooks(
    pipeline: Any, generate: Generate, counted: Callable[..., Any]
) -> None:
    generate(pipeline)  # diffusers now has a registry, with a list of hooked children that is stale
    with mixcache.enable(pipeline, "every_nth", granularities="block"), counted(pipeline.transformer) as work:
        generate(pipeline)
    assert (work.num_calls, work.num_blocks) == (24, 96 - 3 * 4)


def test_a_with_block_detaches_after_an_error(pipeline: Any) -> None:
    with pytest.raises(ZeroDivisionError), mixcache.enable(pipeline) as handle:
        raise ZeroDivisionError
    assert not handle.is_enabled
    assert not overlay.hooks_on(pipeline.transformer)


def test_an_enabled_pipeline_that_nobody_holds_is_freed(make_pipeline: Callable[..., Any], generate: Generate) -> None:
    pipeline = make_pipeline()
    mixcache.enable(pipeline, "every_nth", granularities="block")
    generate(pipeline)
    transformer = weakref.ref(pipeline.transformer)
    del pipeline
    gc.collect()
    assert transformer() is None


def test_the_handle_is_not_needed(pipeline: Any, generate: Generate, counted: Callable[..., Any]) -> None:
    mixcache.enable(pipeline, "every_nth", granularities="step")
    gc.collect()
    with counted(pipeline.transformer) as work:
        generate(pipeline)
    assert work.num_calls == 24 - 3 * 2
    with pytest.raises(ValueError, match="enabled on this transformer already"):
        mixcache.enable(pipeline)
    mixcache.disable(pipeline)


class CountingHook(ModelHook):
    """Somebody else's hook: counts, and doubles what it stands before."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def new_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        output = self.fn_ref.original_forward(*args, **kwargs)
        return (output[0] * 2,) if isinstance(output, tuple) else output * 2


class WatchingHook(ModelHook):
    """Somebody else's hook with the two small callbacks alone."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def post_forward(self, module: torch.nn.Module, output: Any) -> Any:
        self.num_calls += 1
        return output


@pytest.mark.parametrize("kind", [CountingHook, WatchingHook])
@pytest.mark.parametrize("where", ["transformer", "block"])
@pytest.mark.parametrize("order", ["before", "after", "both"])
def test_the_hooks_of_others_outlive_ours(
    pipeline: Any, kind: type[CountingHook | WatchingHook], where: str, order: str
) -> None:
    transformer = pipeline.transformer
    module = transformer if where == "transformer" else transformer.blocks[2]
    arguments = inputs(transformer)

    def plain() -> torch.Tensor:
        with torch.no_grad():
            return transformer(**arguments, return_dict=False)[0]

    without = plain()
    hooks = {name: kind() for name in (["before", "after"] if order == "both" else [order])}
    registry = HookRegistry.check_if_exists_or_initialize(module)
    if "before" in hooks:
        registry.register_hook(hooks["before"], "before")
    handle = mixcache.enable(pipeline, "every_nth", granularities="block")
    if "after" in hooks:
        registry.register_hook(hooks["after"], "after")
    attached = plain()
    handle.disable()
    counts = [hook.num_calls for hook in hooks.values()]
    assert counts == [1] * len(hooks)
    assert torch.equal(plain(), attached)
    assert [hook.num_calls for hook in hooks.values()] == [2] * len(hooks)
    assert list(registry.hooks) == list(hooks)
    for name in reversed(hooks):
        registry.remove_hook(name, recurse=False)
    assert torch.equal(plain(), without)
    assert torch.equal(attached, without) == (kind is WatchingHook)
    assert [hook.num_calls for hook in hooks.values()] == [2] * len(hooks)


class OffloadLike(accelerate.hooks.ModelHook):
    """What accelerate's offloading is to us: a wrapper around the forward of the moment."""

    def __init__(self) -> None:
        self.num_calls = 0

    def pre_forward(self, module: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        self.num_calls += 1
        return args, kwargs


@pytest.mark.parametrize("where", ["transformer", "block"])
@pytest.mark.parametrize("is_before", [True, False])
def test_a_hook_of_accelerate_outlives_ours(pipeline: Any, generate: Generate, where: str, is_before: bool) -> None:
    plain = generate(pipeline)
    module = pipeline.transformer if where == "transformer" else pipeline.transformer.blocks[2]
    offload = OffloadLike()
    if is_before:
        accelerate.hooks.add_hook_to_module(module, offload)
    handle = mixcache.enable(pipeline, "every_nth", granularities="block")
    if not is_before:
        accelerate.hooks.add_hook_to_module(module, offload)
    generate(pipeline)
    assert handle.trace.counts()["block"] == 3
    handle.disable()
    offload.num_calls = 0
    assert torch.equal(generate(pipeline), plain)
    assert (offload.num_calls, len(handle.trace)) == (24, 12)
    accelerate.hooks.remove_hook_from_module(module)
    assert torch.equal(generate(pipeline), plain)
    assert (offload.num_calls, len(handle.trace), handle.summary()["num_calls_in_full"]) == (24, 12, 0)


# ------------------------------------------------------------------------------------------------ memory and words


@pytest.mark.parametrize(
    ("settings", "peak_bytes"),
    [
        # latents of 4 x 2 x 2 x 2 floats: 128 bytes; hidden states of 2 tokens x 24 floats: 192 bytes
        # the histories, and what a computed step sets aside for them: two outputs, or their difference; a residual
        # takes the room of the one that it pushes out
        ({"granularities": "step"}, 2 * 128 + 2 * 128),
        ({"granularities": "step", "predictor": "parabola"}, 3 * 2 * 128 + 2 * 128),
        ({"granularities": "cfg"}, 128 + 3 * 128),
        ({"granularities": "block"}, 2 * 192),
        ({"granularities": "block", "predictor": "line"}, 2 * 2 * 192),
    ],
)
def test_memory(pipeline: Any, generate: Generate, settings: dict[str, Any], peak_bytes: int) -> None:
    with mixcache.enable(pipeline, "every_nth", **settings) as handle:
        generate(pipeline)
        assert (handle.summary()["held_bytes"], handle.summary()["peak_bytes"]) == (0, peak_bytes)


def test_too_few_steps_are_all_computed_with_one_warning(
    pipeline: Any, generate: Generate, caplog: pytest.LogCaptureFixture
) -> None:
    plain = generate(pipeline, num_steps=5)
    with caplog.at_level(logging.WARNING, "mixcache"), mixcache.enable(pipeline, "every_nth") as handle:
        assert torch.equal(generate(pipeline, num_steps=5), plain)
        generate(pipeline, num_steps=5)
        generate(pipeline, num_steps=8)
    assert [record.getMessage() for record in caplog.records if record.name == "mixcache"] == [
        "5 steps are no more than the 4 of the warm-up and the 1 of the cool-down: everything is computed"
    ]
    assert letters(handle.trace.generation(0)) == "....."


def test_a_prediction_has_the_type_the_caller_asked_for(pipeline: Any) -> None:
    transformer = pipeline.transformer
    arguments = inputs(transformer)
    positional = tuple(arguments.values())
    with mixcache.enable(pipeline, "every_nth", granularities="step", period=9, num_warmup_steps=1) as handle:
        computed = [call(transformer, step, arguments) for step in (0, 1)][-1]
        predicted = call(transformer, 2, arguments)
        assert type(predicted) is type(computed) is Transformer2DModelOutput
        assert torch.equal(predicted.sample, computed.sample)
        as_tuple = call(transformer, 3, arguments, return_dict=False)
        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], computed.sample)
        context = {"step_index": 4, "num_inference_steps": 10, "sigma": 0.6}
        with torch.no_grad(), transformer.cache_context("cond", **context):
            by_position = transformer(*positional, None, False)
        assert isinstance(by_position, tuple)
        assert torch.equal(by_position[0], computed.sample)
    assert letters(handle.trace) == "..sss"


def test_calls_that_say_too_little_pass_through(pipeline: Any, caplog: pytest.LogCaptureFixture) -> None:
    transformer = pipeline.transformer
    arguments = inputs(transformer)
    with torch.no_grad():
        plain = transformer(**arguments).sample
    with mixcache.enable(pipeline, "every_nth", granularities="step", num_warmup_steps=1) as handle:
        with torch.no_grad():
            for _ in range(3):
                assert torch.equal(transformer(**arguments).sample, plain)
            with transformer.cache_context("cond"):
                assert torch.equal(transformer(**arguments).sample, plain)
        assert torch.equal(call(transformer, 0, arguments, num_steps=None).sample, plain)
        with transformer.cache_context("cond", step_index=0, num_inference_steps=10, sigma=1.0):
            output = transformer(**arguments).sample
        assert output.requires_grad
        assert handle.summary()["num_calls_in_full"] == 6
        assert len(handle.trace) == 0
    messages = [record.getMessage() for record in caplog.records if record.name == "mixcache"]
    assert len(messages) == 1
    assert messages[0].startswith("a call of the transformer is computed in full: the scheduler has no timesteps yet")


def test_summary_by_hand(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="step", period=2) as handle:
        generate(pipeline)
        generate(pipeline)
    summary = handle.summary()
    assert summary.speedup is not None
    assert summary.to_dict() | {"speedup": None} == {
        "policy": "every_nth",
        "num_generations": 2,
        "num_steps": 24,
        "granularity_counts": {"compute": 18, "block": 0, "cfg": 0, "step": 6},
        "computed_share": 0.75,
        "ideal_speedup": pytest.approx(4 / 3),
        "num_non_finite": 0,
        "num_calls_in_full": 0,
        "wished_speedup": None,
        "estimate": None,
        "speedup": None,  # the times of steps are not fixed
        "num_corrected": 0,
        "why_not": None,
        "held_bytes": 0,
        "peak_bytes": 512,
    }


def test_a_handle_says_what_it_is(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="step", period=2) as handle:
        own = "every_nth(granularities=('step',), period=2, predictor='reuse', corrector=False)"
        assert repr(handle) == f"<Handle: WanPipeline with {own}, enabled, 0 steps>"
        generate(pipeline)
    assert repr(handle) == f"<Handle: WanPipeline with {own}, not enabled, 12 steps>"
    with mixcache.enable(pipeline, error=0.5) as handle:
        generate(pipeline)
        own = "hold(speedup=None, quality=None, error=0.5, corrector=True)"  # and no table of what was learnt
        assert repr(handle) == f"<Handle: WanPipeline with {own}, enabled, 12 steps>"


class NoStepEngine(Engine):
    """Computes what the policy would leave out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.leave_out(Granularity.STEP)


def test_engines_of_another_class(pipeline: Any, generate: Generate) -> None:
    config = mixcache.MixCacheConfig(policy="every_nth", settings={"granularities": "step", "period": 2})
    with attach(pipeline, config, NoStepEngine) as handle:
        assert isinstance(handle.engine, NoStepEngine)
        generate(pipeline)
        with pytest.raises(ValueError, match="mixcache is enabled on this transformer already"):
            attach(pipeline, config)
        assert handle.is_enabled
    assert letters(handle.trace) == "." * 12
    with attach(pipeline, config) as handle:
        generate(pipeline)
    assert set(letters(handle.trace)) == {".", "s"}


def test_what_cannot_be_put_on_leaves_nothing(pipeline: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("half way")

    monkeypatch.setattr(PipelineHook, "covers", property(fails))
    with pytest.raises(RuntimeError, match="half way"):
        mixcache.enable(pipeline)
    assert not any(overlay.hooks_on(module) for module in (pipeline, *pipeline.transformer.modules()))


def test_a_policy_object_and_a_bounded_one(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, EveryNth(period=3), num_warmup_steps=1) as handle:
        generate(pipeline)
    assert letters(handle.trace) == "..ss.ss.ss.."
    own = Bounded(policy=EveryNth(period=3), num_warmup_steps=2, num_cooldown_steps=0)
    with mixcache.enable(pipeline, own) as handle:
        generate(pipeline)
    assert letters(handle.trace) == "...ss.ss.ss."


@pytest.mark.parametrize("replaced", ["another tensor", "in place", "an equal copy"])
def test_a_callback_that_replaces_the_text_drops_what_was_cached(
    pipeline: Any, generate: Generate, replaced: str
) -> None:
    def callback(pipe: Any, step: int, timestep: Any, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        embeds = tensors["prompt_embeds"]
        if step == 6 and replaced == "in place":
            embeds += 1
        return {"prompt_embeds": embeds + 1 if step == 6 and replaced == "another tensor" else embeds.clone()}

    inputs = ["prompt_embeds"]
    arguments = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": inputs}
    with mixcache.enable(pipeline, "every_nth", granularities="step", period=9, num_warmup_steps=2) as handle:
        generate(pipeline, **arguments)
    assert letters(handle.trace) == ("...ssssssss." if replaced == "an equal copy" else "...ssss.sss.")


def test_inference_mode(pipeline: Any, generate: Generate) -> None:
    with mixcache.enable(pipeline, "every_nth", granularities="step") as handle:
        expected = generate(pipeline)
        with torch.inference_mode():
            assert torch.equal(generate(pipeline), expected)
    assert handle.trace.counts()["step"] == 2 * 3


# -------------------------------------------------------------------------------------------------------- compilation


@pytest.mark.parametrize("case", ["step", "cfg", "block", "mixcache"])
@pytest.mark.parametrize("compiled_first", [True, False])
def test_compiled_blocks_are_cached_as_one_graph(
    make_pipeline: Callable[..., Any], generate: Generate, case: str, compiled_first: bool
) -> None:
    policy, settings = CASES[case]
    with mixcache.enable(pipeline := make_pipeline(), policy, **settings) as handle:
        expected, chosen = generate(pipeline), letters(handle.trace)
    torch._dynamo.reset()
    counter = CompileCounter()
    pipeline = make_pipeline()
    if compiled_first:
        pipeline.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
    compiled = [block._compiled_call_impl for block in pipeline.transformer.blocks]
    with mixcache.enable(pipeline, policy, **settings) as handle:
        if not compiled_first:
            pipeline.transformer.compile_repeated_blocks(fullgraph=True, backend=counter)
            compiled = [block._compiled_call_impl for block in pipeline.transformer.blocks]
        torch.testing.assert_close(generate(pipeline), expected, rtol=1e-4, atol=1e-5)
        assert letters(handle.trace) == chosen
    assert counter.frame_count == 1
    assert [block._compiled_call_impl for block in pipeline.transformer.blocks] == compiled
    assert not any(overlay.hooks_on(block) for block in pipeline.transformer.blocks)
