"""What policy hold learns of a model while it generates: it goes from one clip to the next, into a file, and nowhere
else; and what becomes of a wish on the way."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from traces import letters

import mixcache
from mixcache.hosts.diffusers import overlay
from mixcache.policies import Hold
from mixcache.policies.budget import num_computed_for
from mixcache.policies.way import PRIOR, Learnt
from mixcache.profiles import Profile
from mixcache.trace import Trace

Generate = Callable[..., torch.Tensor]
pytestmark = pytest.mark.usefixtures("steady_times")


def test_before_anything_is_known_there_is_no_profile(pipeline: Any, generate: Generate, tmp_path: Path) -> None:
    with mixcache.enable(pipeline) as handle:
        assert handle.profile is None
        with pytest.raises(ValueError, match=r"^nothing was learnt yet: generate a clip with policy hold first$"):
            handle.save_profile(tmp_path / "learnt.json")
    with mixcache.enable(pipeline, "every_nth") as handle:
        generate(pipeline)
        assert handle.profile is None
        with pytest.raises(ValueError, match="nothing was learnt yet"):
            handle.save_profile(tmp_path / "learnt.json")
    assert list(tmp_path.iterdir()) == []


def test_a_profile_says_what_a_clip_has_shown(pipeline: Any, generate: Generate, tmp_path: Path) -> None:
    path = tmp_path / "learnt.json"
    with mixcache.enable(pipeline, error=1e-9) as handle:  # every step is computed, and shows an error
        generate(pipeline)
        profile = handle.profile
        handle.save_profile(path)
    assert profile is not None
    assert (profile.model, profile.num_generations, profile.impacts, profile.psnrs) == ("WanPipeline", 1, {}, [])
    assert profile.misfit(pipeline.transformer) is None
    assert set(profile.rates) <= {str(place) for place in PRIOR.places}
    assert len(profile.rates) > 3
    assert Profile.load(path) == profile


def test_rates_are_errors_by_the_level_between_two_steps(pipeline: Any, generate: Generate) -> None:
    """A loop of 3 steps has two errors; each is seen at the place nearest to its middle."""
    levels: list[float] = []
    errors: list[float] = []
    observe = Hold.observe

    def watched(self: Hold, measurement: Any, state: Any) -> None:
        levels.append(measurement.sigma)
        errors.extend(trial.error() for trial in measurement.trials.values())
        observe(self, measurement, state)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Hold, "observe", watched)
        with mixcache.enable(pipeline) as handle:
            generate(pipeline, num_steps=3)
            learnt = handle.policy.policy.learnt
    assert (len(levels), len(errors)) == (3, 2)
    expected = Learnt(num_generations=1)
    for (one, other), error in zip(itertools.pairwise(levels), errors, strict=True):
        expected.see((one + other) / 2, error / (one - other))
    assert learnt == expected


def test_the_second_clip_begins_with_what_the_first_has_taught(pipeline: Any, generate: Generate) -> None:
    seen: list[Learnt] = []
    init = Hold.init

    def watched(self: Hold) -> Any:
        seen.append(Learnt(log_rates=dict(self.learnt.log_rates), num_generations=self.learnt.num_generations))
        return init(self)

    with mixcache.enable(pipeline, speedup=2.0) as handle, pytest.MonkeyPatch.context() as patched:
        patched.setattr(Hold, "init", watched)
        first = generate(pipeline)
        known, num_begun = dict(handle.policy.policy.learnt.log_rates), len(seen)
        second = generate(pipeline)
    assert known
    assert seen[num_begun - 1].log_rates == known  # a state is made ready when the run before it ends
    assert handle.policy.policy.learnt.num_generations == 2
    computed = [letters(Trace(handle.trace.generation(k))).count(".") for k in (0, 1)]
    assert all(0 <= count - num_computed_for(2.0, 12, 0.02) <= 1 for count in computed)
    assert first.isfinite().all()
    assert second.isfinite().all()


def test_a_file_goes_on_where_the_handle_was(pipeline: Any, generate: Generate, tmp_path: Path) -> None:
    """Two clips in a row, and one on each side of the file: the same bits, up to what the file rounds."""
    with mixcache.enable(pipeline, speedup=2.0) as handle:
        generate(pipeline)
        handle.save_profile(tmp_path / "learnt.json")
        expected = generate(pipeline)
        schedule = letters(Trace(handle.trace.generation(1)))
    with mixcache.enable(pipeline, speedup=2.0, profile=tmp_path / "learnt.json") as other:
        assert other.profile == Profile.load(tmp_path / "learnt.json")
        clip = generate(pipeline)
    assert letters(other.trace) == schedule
    assert torch.equal(clip, expected)
    profile = other.profile
    assert profile is not None
    assert profile.num_generations == 2
    assert Profile.load(tmp_path / "learnt.json").num_generations == 1  # what was given stays as it was


@pytest.mark.parametrize("where", ["a folder", "a missing folder", "a file for a folder"])
def test_a_profile_that_cannot_be_written_is_not_lost(
    pipeline: Any, generate: Generate, tmp_path: Path, where: str
) -> None:
    (tmp_path / "file").write_text("")
    place = {"a folder": tmp_path, "a missing folder": tmp_path / "none" / "p.json"}.get(where, tmp_path / "file" / "p")
    with mixcache.enable(pipeline, error=0.5) as handle:
        generate(pipeline)
        before = handle.profile
        with pytest.raises(OSError, match=str(place.name)):
            handle.save_profile(place)
        assert handle.profile == before
        handle.save_profile(tmp_path / "elsewhere.json")
    assert Profile.load(tmp_path / "elsewhere.json") == before
    assert {path.name for path in tmp_path.iterdir()} == {"file", "elsewhere.json"}


def test_an_old_file_stays_where_a_new_one_cannot_be_written(
    pipeline: Any, generate: Generate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    path = tmp_path / "learnt.json"
    with mixcache.enable(pipeline, error=0.5) as handle:
        generate(pipeline)
        handle.save_profile(path)
        content = path.read_bytes()
        generate(pipeline)
        with monkeypatch.context() as patched:
            patched.setattr(Path, "write_bytes", full)
            with pytest.raises(OSError, match="No space left"):
                handle.save_profile(path)
    assert path.read_bytes() == content


def test_two_pipelines_do_not_share_what_is_learnt(make_pipeline: Callable[..., Any], generate: Generate) -> None:
    pipelines = make_pipeline(), make_pipeline(seed=1)
    policy = Hold(error=0.5)
    handles = [mixcache.enable(pipeline, policy) for pipeline in pipelines]
    generate(pipelines[0])
    assert handles[0].profile is not None
    assert handles[1].profile is None
    assert policy.learnt == Learnt()
    generate(pipelines[1])
    profiles = [handle.profile for handle in handles]
    assert profiles[0].rates != profiles[1].rates
    assert profiles[0].experts != profiles[1].experts
    for handle in handles:
        handle.disable()


def test_a_clip_that_was_broken_off_is_not_counted(pipeline: Any, generate: Generate) -> None:
    def interrupt(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if step == 5:
            raise KeyboardInterrupt
        return {}

    with mixcache.enable(pipeline, speedup=1.5) as handle:
        with pytest.raises(KeyboardInterrupt):
            generate(pipeline, callback_on_step_end=interrupt)
        assert handle.policy.policy.learnt.num_generations == 0
        generate(pipeline)
        assert handle.policy.policy.learnt.num_generations == 1


def test_pipelines_in_threads_learn_together(pipeline: Any, generate: Generate) -> None:
    """They share a transformer; how each is made hangs on what the other has shown, so only that they are made is
    promised."""
    from copy import deepcopy

    own = {name: deepcopy(getattr(pipeline, name)) for name in ("scheduler", "tokenizer")}
    other = type(pipeline)(**pipeline.components | own)
    other.set_progress_bar_config(disable=True)
    errors: list[BaseException] = []
    computed: list[int] = []

    def serve(mine: Any) -> None:
        try:
            for _ in range(3):
                assert generate(mine).isfinite().all()
        except BaseException as error:
            errors.append(error)

    with mixcache.enable(pipeline, speedup=2.0) as handle:
        threads = [threading.Thread(target=serve, args=(mine,), daemon=True) for mine in (pipeline, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=120)
        profile = handle.profile
        computed = [letters(Trace(handle.trace.generation(k))).count(".") for k in range(6)]
    assert not errors, errors
    assert profile is not None
    assert profile.num_generations == 6
    assert all(0 <= count - num_computed_for(2.0, 12, 0.02) <= 1 for count in computed)


# -------------------------------------------------------------------------------------------------------------- a wish


@pytest.mark.parametrize("speedup", [1.25, 1.5, 2.0, 2.5])
def test_as_many_steps_are_computed_as_the_wish_leaves(pipeline: Any, generate: Generate, speedup: float) -> None:
    with mixcache.enable(pipeline, speedup=speedup) as handle:
        generate(pipeline, num_steps=20)
        schedule = letters(handle.trace)
        summary = handle.summary()
    assert 0 <= schedule.count(".") - num_computed_for(speedup, 20, 0.02) <= 2
    assert (schedule[:2], schedule[-1]) == ("..", ".")
    assert summary.wished_speedup == speedup
    assert summary.why_not is None
    assert summary.num_corrected > 0
    assert f"({speedup:g}x wished)" in str(summary)


@pytest.mark.parametrize(
    ("speedup", "num_steps", "message"),
    [
        (9.0, 12, r"^speedup=9 cannot be reached with 12 steps; they allow 1 to 2\.9$"),
        (1.5, 4, r"^speedup=1\.5 with 4 steps would only break the clip: none of them is redundant; take fewer steps"),
    ],
)
def test_a_wish_out_of_reach_is_an_error_and_the_pipeline_goes_on(
    pipeline: Any, generate: Generate, counted: Callable[..., Any], speedup: float, num_steps: int, message: str
) -> None:
    plain = generate(pipeline)
    with mixcache.enable(pipeline, speedup=speedup) as handle:
        for _ in range(2):
            with pytest.raises(ValueError, match=message), counted(pipeline.transformer) as work:
                generate(pipeline, num_steps=num_steps)
            assert work.num_calls <= 2 * 2  # those of the warm-up
        assert handle.summary().held_bytes == 0
        if speedup < 2:  # the same handle serves a longer loop
            generate(pipeline, num_steps=12)
            assert handle.summary().granularity_counts["step"] > 0
    assert not any(overlay.hooks_on(each) for each in (pipeline, *pipeline.transformer.modules()))
    assert torch.equal(generate(pipeline), plain)


def test_a_loop_of_another_length_keeps_the_wish_in_its_own_steps(
    pipeline: Any, generate: Generate, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is carried over of a plan for other steps, and nothing is said of it."""
    with mixcache.enable(pipeline, speedup=1.5) as handle:
        for num_steps in (20, 12, 20, 16):
            generate(pipeline, num_steps=num_steps)
            run = handle.trace.generation(-1)
            assert len(run) == num_steps
            assert abs(letters(run).count(".") - num_computed_for(1.5, num_steps, 0.02)) <= 2
            assert run[-1].granularity.value == "compute"
        profile = handle.profile
    assert profile is not None
    assert len(profile.limits) == 3
    assert [record.message for record in caplog.records if record.name == "mixcache"] == []


def test_a_loop_is_not_broken_off_for_times_that_were_measured_in_it(
    pipeline: Any, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cached step that took as long as a computed one says that nothing can be reached; neither this loop nor the
    next one is refused for it."""
    from mixcache.core.step_times import StepTimes
    from mixcache.decision import Granularity

    calls: list[int] = []

    def medians(self: StepTimes) -> dict[Granularity, float]:
        calls.append(1)
        return {Granularity.COMPUTE: 1.0, Granularity.STEP: 0.02 if len(calls) < 8 else 0.9}

    monkeypatch.setattr(StepTimes, "medians", medians)
    with mixcache.enable(pipeline, speedup=2.0) as handle:
        generate(pipeline)
        generate(pipeline)
        assert len(handle.trace) == 24


@pytest.mark.parametrize("settings", [{"speedup": 2.0}, {"error": 0.9}, {"quality": "fast", "corrector": False}])
def test_a_replay_of_a_corrected_run_gives_the_same_bits(
    pipeline: Any, generate: Generate, tmp_path: Path, settings: dict[str, Any]
) -> None:
    with mixcache.enable(pipeline, **settings) as handle:
        generate(pipeline)
        recorded = generate(pipeline)  # with what the first has taught
    trace = Trace(handle.trace.generation(1))
    degrees = {entry.correction_degree for entry in trace}
    assert ("s" in letters(trace), 2 in degrees) == (True, settings.get("corrector", True))
    trace.save(tmp_path / "trace.jsonl")
    for given in (trace, tmp_path / "trace.jsonl"):
        with mixcache.enable(pipeline, "replay", trace=given) as again:
            assert torch.equal(generate(pipeline), recorded)
        assert letters(again.trace) == letters(trace)
        assert again.trace.counts() == trace.counts()


def test_a_word_is_what_its_error_is(pipeline: Any, generate: Generate) -> None:
    from mixcache.policies.hold import QUALITIES

    for word, error in QUALITIES.items():
        with mixcache.enable(pipeline, quality=word) as by_word:
            clip = generate(pipeline)
        with mixcache.enable(pipeline, error=error) as by_error:
            assert torch.equal(generate(pipeline), clip)
        assert letters(by_word.trace) == letters(by_error.trace)
