"""The rivals on the built-in model, small: each fires, and leaves nothing behind, not even after an exception."""

from __future__ import annotations

import json
import logging
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.hooks.hooks import CacheContext, HookRegistry, _set_cache_context

from mixcache.bench.meter import WorkMeter
from mixcache.bench.methods import Case, Method
from mixcache.bench.peers import PEERS, MissingExtraError, spectrum, stack, teacache
from mixcache.bench.peers.easycache import RootHook
from mixcache.bench.peers.leftovers import quiet, restored
from mixcache.bench.peers.peer import SETTINGS
from mixcache.calibration import built_in_prompts
from mixcache.generation import final_latents
from mixcache.zoo import call_defaults, load

NUM_STEPS = 12
SMALL = call_defaults() | {"height": 48, "width": 48, "num_frames": 5, "num_inference_steps": NUM_STEPS}
PROMPT, *CALIBRATION_PROMPTS = built_in_prompts(2)
CACHE_DIT = [name for name in PEERS if name.startswith("db-cache")]


@pytest.fixture(scope="module")
def case() -> Case:
    torch.set_num_threads(1)
    return Case(pipeline=load(), arguments=SMALL, calibration_prompts=tuple(CALIBRATION_PROMPTS))


def latents_and_work(case: Case) -> tuple[torch.Tensor, int]:
    meter = WorkMeter()
    with meter.on(case.pipeline):
        latents = final_latents(case.pipeline, PROMPT, seed=3, on_step=meter.mark, **case.arguments)
    return latents, sum(meter.steps)


@pytest.fixture(scope="module")
def plain(case: Case) -> tuple[torch.Tensor, int]:
    return latents_and_work(case)


@pytest.fixture(scope="module", params=["shapes-hunyuan", "shapes-cogvideox"])
def other_case(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    small = call_defaults(request.param) | {name: SMALL[name] for name in ("height", "width", "num_frames")}
    arguments = small | {"num_inference_steps": NUM_STEPS}
    return Case(pipeline=load(request.param), arguments=arguments, calibration_prompts=tuple(CALIBRATION_PROMPTS))


@pytest.fixture(scope="module")
def other_plain(other_case: Case) -> tuple[torch.Tensor, int]:
    return latents_and_work(other_case)


def boldest(name: str) -> Method:
    return PEERS[name](NUM_STEPS)[-1]


def footprint(case: Case) -> list[Any]:
    """Everything a peer might change on the pipeline, its class and its transformer."""
    pipeline, transformer = case.pipeline, case.pipeline.transformer
    modules = [(name, sorted(vars(module)), list(module._modules)) for name, module in transformer.named_modules()]
    registry = getattr(transformer, "_diffusers_hook", None)
    hooks = list(registry.hooks) if registry is not None else []
    return [type(pipeline).__call__, sorted(vars(type(pipeline))), sorted(vars(pipeline)), modules, hooks]


@pytest.mark.parametrize("num_steps", [NUM_STEPS, 20, 50])
@pytest.mark.parametrize("name", PEERS)
def test_settings_of_a_family(name: str, num_steps: int) -> None:
    methods = PEERS[name](num_steps)
    assert 3 <= len(methods) <= 9
    assert len({method.name for method in methods}) == len(methods)
    for method in methods:
        assert method.family == name
        assert method.is_peer
        assert method.setting
        assert method.origin.startswith(("diffusers ", "cache-dit ", "re-implementation of arXiv "))
        assert method.is_calibrated == (name in ("mag-cache", "teacache"))


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_fires_and_leaves_nothing_behind(
    name: str, case: Case, plain: tuple[torch.Tensor, int], capfd: pytest.CaptureFixture[str]
) -> None:
    before = footprint(case)
    with boldest(name).attached(case) as account:
        latents, work = latents_and_work(case)
        assert isinstance(account(), dict)
        second, second_work = latents_and_work(case)
    assert latents.isfinite().all()
    assert not torch.equal(latents, plain[0])
    assert 0 < work < 0.95 * plain[1]
    assert torch.equal(second, latents)  # nothing of a generation is left to the next
    assert second_work == work
    assert footprint(case) == before
    again, full_work = latents_and_work(case)
    assert torch.equal(again, plain[0])
    assert full_work == plain[1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # faster-cache
@pytest.mark.parametrize("name", PEERS)
def test_a_peer_fires_on_the_other_architectures_and_leaves_nothing_behind(
    name: str, other_case: Case, other_plain: tuple[torch.Tensor, int]
) -> None:
    before = footprint(other_case)
    method = PEERS[name](NUM_STEPS, type(other_case.pipeline.transformer).__name__)[-1]
    with method.attached(other_case):
        latents, work = latents_and_work(other_case)
    assert latents.isfinite().all()
    if name == "sea-cache":  # these pipelines do not tell it the noise level
        assert torch.equal(latents, other_plain[0])
        assert method.when_idle
    else:
        assert not torch.equal(latents, other_plain[0])
        assert 0 < work < other_plain[1]
    assert footprint(other_case) == before
    assert torch.equal(latents_and_work(other_case)[0], other_plain[0])


def every_part() -> Method:
    """TaylorSeer outside of its lite mode."""
    options = {"cache_interval": 3, "max_order": 1, "num_first_steps": 3, "num_last_steps": 1}
    return PEERS["taylorseer"].make(NUM_STEPS, **options, is_lite=False)


def test_taylorseer_forecasts_every_part(case: Case, plain: tuple[torch.Tensor, int]) -> None:
    with every_part().attached(case):
        latents, work = latents_and_work(case)
    assert not torch.equal(latents, plain[0])
    # of the 12 steps 0 to 3, 6, 9 and 11 are computed
    assert work == pytest.approx(7 / 12 * plain[1])
    assert torch.equal(latents_and_work(case)[0], plain[0])


def test_taylorseer_forecasts_every_part_of_the_other_architectures(
    other_case: Case, other_plain: tuple[torch.Tensor, int]
) -> None:
    with every_part().attached(other_case):
        latents, work = latents_and_work(other_case)
    assert not torch.equal(latents, other_plain[0])
    # the modulation by time, of one token, is no part that is forecast
    assert 7 / 12 * other_plain[1] < work < 0.7 * other_plain[1]


def test_taylorseer_forecasts_every_part_of_the_classes_it_is_told_of(case: Case) -> None:
    unknown = Case(pipeline=SimpleNamespace(transformer=torch.nn.Linear(1, 1)), arguments=SMALL)
    with pytest.raises(ValueError, match="the parts of Linear to forecast are not known"):
        every_part().attached(unknown).__enter__()


@pytest.mark.parametrize("length", ["many", "few"])
def test_every_family_has_settings_for_every_class(length: str) -> None:
    settings = json.loads(SETTINGS.read_text())
    assert len(settings) == 3
    for of_class in settings.values():
        assert set(of_class[length]) == set(PEERS)


@pytest.mark.parametrize("name", PEERS)
def test_nothing_is_left_after_an_exception(name: str, case: Case, plain: tuple[torch.Tensor, int]) -> None:
    before = footprint(case)

    def stop(num_done: int, total: int) -> None:
        if num_done == NUM_STEPS - 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), boldest(name).attached(case):
        final_latents(case.pipeline, PROMPT, seed=4, on_step=stop, **case.arguments)
    assert footprint(case) == before
    assert torch.equal(latents_and_work(case)[0], plain[0])


def test_faster_cache_as_it_comes_fails_on_wan(case: Case, plain: tuple[torch.Tensor, int]) -> None:
    before = footprint(case)
    with pytest.raises(IndexError), PEERS["faster-cache"](NUM_STEPS)[0].attached(case):
        latents_and_work(case)
    assert footprint(case) == before
    assert torch.equal(latents_and_work(case)[0], plain[0])


@pytest.mark.parametrize("name", CACHE_DIT)
def test_a_missing_package_is_named(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    method = boldest(name)
    monkeypatch.setitem(sys.modules, "cache_dit", None)
    with pytest.raises(MissingExtraError, match=r"cache-dit is not installed.*pip install 'mixcache\[bench\]'"):
        method.attached(case).__enter__()


@pytest.mark.parametrize("name", ["mag-cache", "teacache"])
def test_calibration_needs_prompts(name: str, case: Case) -> None:
    empty = Case(pipeline=case.pipeline, arguments=case.arguments)
    with pytest.raises(ValueError, match="calibration_prompts"):
        boldest(name).attached(empty).__enter__()


def test_teacache_is_refused_where_half_of_the_steps_would_run_without_it() -> None:
    pipeline = SimpleNamespace(transformer=torch.nn.Linear(1, 1), transformer_2=torch.nn.Linear(1, 1))
    two_experts = Case(pipeline=pipeline, arguments=SMALL, calibration_prompts=tuple(CALIBRATION_PROMPTS))
    with pytest.raises(ValueError, match="two experts"), boldest("teacache").attached(two_experts):
        pass


@pytest.mark.parametrize("name", ["mag-cache", "teacache"])
def test_calibration_is_done_once(name: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    with boldest(name).attached(case):
        pass
    monkeypatch.setattr("mixcache.bench.peers.calibrated.final_latents", lambda *args, **kwargs: pytest.fail("again"))
    with boldest(name).attached(case):
        pass


def test_quiet_restores_levels() -> None:
    logger = logging.getLogger("diffusers.hooks.sea_cache")
    level = logger.level
    with quiet("diffusers"):
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
    assert logger.level == level


def test_restored_takes_away_what_was_added() -> None:
    model = torch.nn.Sequential(torch.nn.Identity())
    with restored(model):
        model[0].forward = lambda value: value + 1
        HookRegistry.check_if_exists_or_initialize(model)
        assert model(torch.ones(1)).item() == 2
    assert model(torch.ones(1)).item() == 1
    assert not hasattr(model, "_diffusers_hook")


@pytest.mark.parametrize("name", ["teacache", "easycache", "spectrum"])
def test_our_versions_of_papers_run_on_the_other_architectures(
    name: str, other_case: Case, other_plain: tuple[torch.Tensor, int]
) -> None:
    plain, plain_work = other_plain
    before = footprint(other_case)
    with boldest(name).attached(other_case):
        first, second = latents_and_work(other_case), latents_and_work(other_case)
    assert footprint(other_case) == before
    assert first[0].isfinite().all()
    assert not torch.equal(first[0], plain)
    assert plain_work / NUM_STEPS * 2 <= first[1] < 0.95 * plain_work
    assert torch.equal(first[0], second[0])
    assert first[1] == second[1]


def test_a_context_that_tells_the_step_is_believed() -> None:
    assert stack.position(CacheContext("cond"), 3, 12) == (3, 12)
    assert stack.position(CacheContext("cond", step_index=1, num_inference_steps=4), 3, 12) == (1, 4)


class Denoiser(torch.nn.Module):
    """v = 2 x."""

    num_calls = 0

    def forward(self, hidden_states: torch.Tensor, return_dict: bool = True) -> tuple[torch.Tensor]:
        self.num_calls += 1
        return (2 * hidden_states,)


def test_easycache_rule() -> None:
    model = Denoiser()
    hook = RootHook(threshold=0.4, num_first_steps=2, num_steps=5)
    HookRegistry.check_if_exists_or_initialize(model).register_hook(hook, "easycache")
    outputs = []
    _set_cache_context(model, CacheContext("cond"))
    for value in [1.0, 2.0, 2.5, 2.75, 4.0]:
        outputs.append(model(torch.full((1,), value), return_dict=False)[0].item())
    # k = |4 - 2| / |2 - 1| = 2; step 2: a = 2 * .5 / 4 = .25, v = 2.5 + (4 - 2); step 3: a = .25 + 2 * .25 / 4.5 = .36,
    # v = 2.75 + 2; the last step is computed
    assert outputs == [2.0, 4.0, 4.5, 4.75, 8.0]
    assert model.num_calls == 3


class Block(torch.nn.Module):
    """Adds the sum of the modulation, and 1 to the text's stream if there is one."""

    num_calls = 0

    def forward(
        self, hidden_states: torch.Tensor, encoder_hidden_states: torch.Tensor | None, temb: torch.Tensor
    ) -> Any:
        self.num_calls += 1
        hidden_states = hidden_states + temb.sum()
        return hidden_states if encoder_hidden_states is None else (hidden_states, encoder_hidden_states + 1)


@pytest.mark.parametrize("has_text", [False, True])
def test_teacache_rule(has_text: bool) -> None:
    model = torch.nn.Sequential(*(Block() for _ in range(3)))
    blocks = list(model)
    outputs, texts = [], []
    with stack.ruled(model, blocks, teacache.TeaRule(5, 0.5, rescale=lambda change: 2 * change), "teacache"):
        _set_cache_context(model, CacheContext("cond"))
        for step, value in enumerate([1.0, 1.1, 1.2, 2.4, 2.5]):
            hidden_states, temb, text = torch.full((1,), 10.0 * step), torch.tensor([value]), torch.zeros(1)
            for block in blocks:
                if has_text:
                    hidden_states, text = block(hidden_states, encoder_hidden_states=text, temb=temb)
                else:
                    hidden_states = block(hidden_states, None, temb)
            outputs.append(round(hidden_states.item(), 4))
            texts.append(text.item())
    # a = 2 * .1 = .2 and .2 + 2 * .0909 = .38 skip, then + 2 * 1 does not; the last step is computed
    assert outputs == [3.0, 13.0, 23.0, 37.2, 47.5]
    assert texts == ([3, 0, 0, 3, 3] if has_text else [0] * 5)
    assert [block.num_calls for block in blocks] == [3, 3, 3]
    assert not hasattr(blocks[0], "_diffusers_hook")


def test_spectrum_schedule_and_forecast() -> None:
    # the authors' setting for 3.5x of 50 steps: 14 are computed, the first five among them, in windows that grow
    computed = sorted(spectrum.computed_steps(50, 5, 2.0, 0.75))
    assert computed == [0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25, 31, 38, 46]
    # a line is forecast as it goes on, by either part alone, but for what the ridge takes
    known = [0, 1, 2, 3, 4]
    for weight in (0.0, 0.5, 1.0):
        weights = spectrum.forecast_weights(known, 6, 50, weight, degree=4, ridge=1e-9)
        assert weights @ np.array(known) == pytest.approx(6.0, abs=1e-2)
        assert weights.sum() == pytest.approx(1.0, abs=1e-2)
    shrunk = spectrum.forecast_weights(known, 6, 50, 1.0, degree=4, ridge=0.1)
    assert 0.8 < shrunk.sum() < 1.0


def test_spectrum_rule() -> None:
    model = torch.nn.Sequential(*(Block() for _ in range(2)))
    blocks, outputs = list(model), []
    rule = spectrum.SpectrumRule(5, frozenset({0, 1, 3}), weight=0.0, degree=1, ridge=0.1)
    with stack.ruled(model, blocks, rule, "spectrum"):
        for _ in range(2):
            _set_cache_context(model, CacheContext("cond"))
            for step, value in enumerate([1.0, 2.0, 9.0, 3.0, 9.0]):
                context = CacheContext("cond", step_index=step, num_inference_steps=5)
                _set_cache_context(model, context)
                hidden = torch.zeros(1)
                for block in blocks:
                    hidden = block(hidden, None, torch.tensor([value]))
                outputs.append(round(hidden.item(), 4))
    # outputs 2 and 4 go on as 6; 4 at step 1 and 6 at step 3 as 7 at step 4; a second trajectory begins anew
    assert outputs == [2.0, 4.0, 6.0, 6.0, 7.0] * 2
    assert [block.num_calls for block in blocks] == [6, 6]
