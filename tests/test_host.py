"""What is read of a call and of the pipeline around it, on schedulers and arguments made by hand."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers.models.modeling_outputs import Transformer2DModelOutput

from mixcache.hosts.diffusers.clock import Clock, Moment, UnknownCallError
from mixcache.hosts.diffusers.packing import Form, conditional_half, named_arguments
from mixcache.hosts.diffusers.reader import Reader
from mixcache.hosts.diffusers.rows import ModelRow

ROW = ModelRow(transformer="T", pipelines=("P",), blocks=("blocks",))
JOINED = ModelRow(
    transformer="T",
    pipelines=("P",),
    blocks=("blocks",),
    batched_cfg=("uncond", "cond"),
    batched=("hidden_states", "timestep"),
    shared=("rotary",),
)


def a_pipeline(timesteps: list[float], sigmas: list[float] | None = None, **more: Any) -> Any:
    """A pipeline with nothing but a scheduler of 1000 training steps."""
    scheduler = SimpleNamespace(
        timesteps=torch.tensor(timesteps),
        num_inference_steps=len(timesteps),
        config=SimpleNamespace(num_train_timesteps=1000),
    )
    if sigmas is not None:
        scheduler.sigmas = torch.tensor(sigmas)
    pipeline = SimpleNamespace(scheduler=scheduler, config=SimpleNamespace(**more), transformer=object())
    return pipeline


def a_context(
    name: str = "cond", step: int | None = None, num_steps: int | None = None, sigma: float | None = None
) -> Any:
    return SimpleNamespace(name=name, step_index=step, num_inference_steps=num_steps, sigma=sigma)


# ----------------------------------------------------------------------------------------------------------- the step


def test_a_context_that_says_it_all_is_believed() -> None:
    pipeline = a_pipeline([900.0, 500.0, 100.0], [0.9, 0.5, 0.1, 0.0])
    moment = Clock(lambda: pipeline).now(a_context(step=1, num_steps=3, sigma=0.5), None)
    assert moment == Moment(1, 3, 0.5, sigmas=pytest.approx((0.9, 0.5, 0.1, 0.0)))


def test_the_schedulers_index_where_the_context_says_nothing() -> None:
    pipeline = a_pipeline([900.0, 500.0, 100.0], [0.9, 0.5, 0.1, 0.0])
    clock = Clock(lambda: pipeline)
    moments = []
    for index in (None, 1, 2):
        pipeline.scheduler._step_index = index
        moments.append(clock.now(None, torch.tensor([123.0])))
    assert [(m.step, m.num_steps, round(m.sigma, 3)) for m in moments] == [(0, 3, 0.9), (1, 3, 0.5), (2, 3, 0.1)]
    pipeline.scheduler._step_index = 3
    with pytest.raises(UnknownCallError, match="past its last step"):
        clock.now(None, None)


def test_steps_are_counted_from_where_the_loop_begins() -> None:
    """Strength 0.5: the scheduler has 4 timesteps, and the loop does the last 2."""
    pipeline = a_pipeline([900.0, 700.0, 500.0, 300.0], [0.9, 0.7, 0.5, 0.3, 0.0])
    clock = Clock(lambda: pipeline)
    pipeline.scheduler._step_index = None
    first = clock.now(None, torch.tensor([500.0]))
    pipeline.scheduler._step_index = 3
    second = clock.now(None, torch.tensor([300.0]))
    assert [(m.step, m.num_steps) for m in (first, second)] == [(0, 2), (1, 2)]
    assert first.sigmas == second.sigmas == pytest.approx((0.5, 0.3, 0.0))
    named = clock.now(a_context(step=0, num_steps=2, sigma=0.5), None)
    assert named.sigmas == first.sigmas


def test_the_place_of_the_timestep_where_the_scheduler_counts_no_steps() -> None:
    pipeline = a_pipeline([900.0, 500.0, 100.0])
    clock = Clock(lambda: pipeline)
    by_value = clock.now(None, torch.tensor([500.0, 500.0]))
    by_place = clock.now(None, pipeline.scheduler.timesteps[2].expand(2))
    assert (by_value, by_place) == (
        Moment(0, 2, 0.5, sigmas=(0.5, 0.1, 0.0)),
        Moment(1, 2, 0.1, sigmas=(0.5, 0.1, 0.0)),
    )
    with pytest.raises(UnknownCallError, match="neither the scheduler nor"):
        clock.now(None, torch.tensor([333.0]))


def test_where_the_model_predicts_v_the_level_is_that_of_the_straight_path() -> None:
    pipeline = a_pipeline([900.0, 500.0])
    scheduler = pipeline.scheduler
    scheduler.config.prediction_type = "v_prediction"
    scheduler.alphas_cumprod = torch.linspace(1.0, 0.0, 1001, dtype=torch.float64)  # 0.1 at 900, 0.5 at 500
    scheduler._step_index = 0
    clock = Clock(lambda: pipeline)
    noisy = clock.now(None, None)
    assert noisy.mix is not None
    assert noisy.mix.signal == pytest.approx(0.1**0.5)
    assert noisy.sigma == pytest.approx(0.9**0.5 / (0.1**0.5 + 0.9**0.5))
    assert noisy.sigmas == pytest.approx((0.75, 0.5, 0.0))
    scheduler._step_index = 1
    assert clock.now(None, None).sigma == pytest.approx(0.5)
    # a level that the context tells is another one
    assert clock.now(a_context(step=1, num_steps=2, sigma=0.9), None).sigma == pytest.approx(0.5)


def test_a_noise_level_that_rises_is_turned_round() -> None:
    """Mochi counts from 0 to 1."""
    pipeline = a_pipeline([0.0, 250.0, 500.0], [0.0, 0.25, 0.5, 1.0])
    clock = Clock(lambda: pipeline)
    sigmas = []
    for index in (None, 1, 2):
        pipeline.scheduler._step_index = index
        sigmas.append(clock.now(None, None).sigma)
    assert sigmas == [1.0, 0.75, 0.5]


@pytest.mark.parametrize(
    ("expert", "moments"), [("transformer", {0: (0, 2, 0), 1: (1, 2, 0)}), ("transformer_2", {2: (0, 1, 2)})]
)
def test_each_of_two_experts_counts_its_own_steps(expert: str, moments: dict[int, tuple[int, int, int]]) -> None:
    pipeline = a_pipeline([900.0, 800.0, 100.0], [0.9, 0.8, 0.1, 0.0], boundary_ratio=0.5)
    pipeline.transformer_2 = object()
    clock = Clock(lambda: pipeline, expert)
    for step in range(3):
        context = a_context(step=step, num_steps=3, sigma=0.5)
        if step in moments:
            moment = clock.now(context, None)
            assert (moment.step, moment.num_steps, moment.offset) == moments[step]
        else:
            with pytest.raises(UnknownCallError, match="outside of the loop's"):
                clock.now(context, None)


# --------------------------------------------------------------------------------------------------------- the branch


def test_branches_without_context_by_their_place_in_the_step_and_their_text() -> None:
    pipeline = a_pipeline([900.0, 500.0], [0.9, 0.5, 0.0])
    reader = Reader(ROW, lambda: pipeline)
    texts = {"cond": torch.zeros(1, 3, 4), "uncond": torch.ones(1, 3, 4)}

    def read(text: torch.Tensor) -> str:
        return reader.read(None, {"hidden_states": torch.zeros(1, 4), "encoder_hidden_states": text}).branch

    for index in (None, 1):
        pipeline.scheduler._step_index = index
        assert [read(texts["cond"]), read(texts["uncond"])] == ["cond", "uncond"]
    with pytest.raises(UnknownCallError, match="more than 2 calls in a step"):
        read(texts["cond"])


def test_another_text_in_the_place_of_a_branch_is_a_doubt() -> None:
    pipeline = a_pipeline([900.0, 500.0], [0.9, 0.5, 0.0])
    reader = Reader(ROW, lambda: pipeline)
    arguments = {"hidden_states": torch.zeros(1, 4), "encoder_hidden_states": torch.zeros(1, 3, 4)}
    pipeline.scheduler._step_index = None
    reader.read(None, arguments)
    pipeline.scheduler._step_index = 1
    with pytest.raises(UnknownCallError, match="another text than before in the cond call"):
        reader.read(None, arguments | {"encoder_hidden_states": torch.zeros(1, 3, 5)})


def test_new_timesteps_are_a_new_generation() -> None:
    """Broken off after the first call: the next run's first call is cond, not uncond."""
    pipeline = a_pipeline([900.0, 500.0], [0.9, 0.5, 0.0])
    pipeline.scheduler._step_index = None
    reader = Reader(ROW, lambda: pipeline)
    arguments = {"hidden_states": torch.zeros(1, 4), "encoder_hidden_states": torch.zeros(1, 3, 4)}
    assert reader.read(None, arguments).branch == "cond"
    pipeline.scheduler.timesteps = pipeline.scheduler.timesteps.clone()
    assert reader.read(None, arguments).branch == "cond"


def test_names_of_guiders() -> None:
    pipeline = a_pipeline([900.0, 500.0], [0.9, 0.5, 0.0])
    pipeline.scheduler._step_index = None
    reader = Reader(ROW, lambda: pipeline)
    arguments = {"hidden_states": torch.zeros(1, 4)}
    names = ("pred_cond", "pred_uncond", "pred_cond_skip", "uncond_stg")
    read = [reader.read(a_context(name), arguments).branch for name in names]
    assert read == ["cond", "uncond", "cond_skip", "uncond_stg"]


@pytest.mark.parametrize(("halves_equal", "parts"), [(True, ("uncond", "cond")), (False, ())])
def test_a_joined_batch_is_seen_on_its_latents(halves_equal: bool, parts: tuple[str, ...]) -> None:
    pipeline = a_pipeline([900.0, 500.0], [0.9, 0.5, 0.0])
    pipeline.scheduler._step_index = None
    latents = torch.stack([torch.zeros(4), torch.zeros(4) if halves_equal else torch.ones(4)])
    info = Reader(JOINED, lambda: pipeline).read(a_context("cond_uncond"), {"hidden_states": latents})
    assert info.parts == parts


# ------------------------------------------------------------------------------------------------- arguments, outputs


def test_the_conditional_half_of_a_joined_call() -> None:
    latents, rotary = torch.arange(4).reshape(2, 2), torch.zeros(2, 5)
    arguments = {"hidden_states": latents, "timestep": torch.tensor([7.0]), "rotary": rotary, "return_dict": False}
    half = conditional_half(JOINED, arguments, batch=2)
    assert half is not None
    assert half["hidden_states"].tolist() == [[2, 3]]
    assert half["timestep"].tolist() == [7.0]
    assert half["rotary"] is rotary
    assert half["return_dict"] is False


def test_a_tensor_that_may_be_batched_or_not_is_a_doubt() -> None:
    arguments = {"hidden_states": torch.zeros(2, 2), "unheard_of": [torch.zeros(2, 5)]}
    assert conditional_half(JOINED, arguments, batch=2) is None
    assert conditional_half(JOINED, arguments | {"unheard_of": [torch.zeros(3, 5)]}, batch=2) is not None


def test_outputs_of_any_type_are_packed_and_come_back() -> None:
    video, sound = torch.arange(8.0).reshape(2, 2, 2), torch.arange(2.0).reshape(2, 1)
    for output in ((video, sound), [video, None, [sound]], (video,), video, Transformer2DModelOutput(sample=video)):
        for keeps_batch in (True, False):
            form, packed = Form.packed(output, keeps_batch=keeps_batch)
            back = form.unpack(packed)
            assert type(back) is type(output)
            assert torch.equal(Form.packed(back, keeps_batch=keeps_batch)[1], packed)
            if keeps_batch:
                assert len(packed) == 2


def test_arguments_by_name() -> None:
    def forward(latents: int, text: int, more: int = 0) -> None: ...

    signature = inspect.signature(forward)
    assert named_arguments(signature, (), {"text": 2, "latents": 1}) == {"text": 2, "latents": 1}
    assert named_arguments(signature, (1,), {"text": 2}) == {"latents": 1, "text": 2}
    with pytest.raises(TypeError):
        named_arguments(signature, (1, 2, 3, 4), {})
