"""The doors to PSNR, SSIM and LPIPS, by arithmetic."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics.functional.image

from mixcache import metrics
from mixcache.metrics import video_lpips, video_psnr, video_ssim


@pytest.mark.parametrize(("offset", "decibels"), [(0.1, 20.0), (0.01, 40.0), (0.5, 20 * math.log10(2))])
def test_psnr_of_a_constant_offset(offset: float, decibels: float) -> None:
    reference = np.full((3, 16, 16, 3), 0.25)
    assert video_psnr(reference + offset, reference) == pytest.approx(decibels, rel=1e-6)


def test_psnr_is_of_the_whole_clip_not_the_mean_over_frames() -> None:
    reference = torch.zeros(2, 16, 16, 3)
    video = reference.clone()
    video[0] += 0.2  # squared errors 0.04 and 0: mean 0.02
    assert video_psnr(video, reference) == pytest.approx(-10 * math.log10(0.02), abs=1e-5)


def test_identical_clips() -> None:
    clip = torch.rand(2, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    assert video_psnr(clip, clip.numpy()) == math.inf
    assert video_ssim(clip, clip.clone()) == pytest.approx(1.0)


def test_ssim_of_flat_frames_is_the_luminance_term_averaged_over_frames() -> None:
    reference = torch.full((2, 16, 16, 3), 0.5, dtype=torch.float64)
    video = reference.clone()
    video[1] = 0.25
    luminance = (2 * 0.5 * 0.25 + 0.01**2) / (0.5**2 + 0.25**2 + 0.01**2)
    assert video_ssim(video, reference) == pytest.approx((1 + luminance) / 2, abs=1e-6)


@pytest.mark.parametrize("measure", [video_psnr, video_ssim])
def test_doors_refuse_what_they_cannot_measure(measure: Callable[..., float]) -> None:
    clip = torch.zeros(2, 16, 16, 3)
    with pytest.raises(ValueError, match=r"video has shape \(2, 16, 16, 3\) but its reference \(1, 16, 16, 3\)"):
        measure(clip, clip[:1])
    with pytest.raises(ValueError, match=r"must be \(num_frames, height, width, 3\)"):
        measure(clip.permute(0, 3, 1, 2), clip.permute(0, 3, 1, 2))
    with pytest.raises(ValueError, match="divide bytes by 255"):
        measure(clip.to(torch.uint8), clip)


def test_ssim_refuses_frames_smaller_than_its_window() -> None:
    with pytest.raises(ValueError, match="frames are 8 by 16 pixels"):
        video_ssim(torch.zeros(1, 8, 16, 3), torch.zeros(1, 8, 16, 3))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder in place of torch's own; torchvision is taken for installed."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: object())
    metrics._has_lpips.cache_clear()
    yield tmp_path
    metrics._has_lpips.cache_clear()


def test_lpips_is_none_where_its_weights_are_not_at_hand(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = np.zeros((2, 16, 16, 3), np.float32)
    assert video_lpips(clip, clip) is None
    assert list(hub.iterdir()) == []  # nothing was downloaded
    (hub / "checkpoints").mkdir()
    (hub / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(b"")
    monkeypatch.setattr(metrics.importlib.util, "find_spec", lambda name: None)
    metrics._has_lpips.cache_clear()
    assert video_lpips(clip, clip) is None


def test_lpips_is_asked_of_frames_as_torchmetrics_takes_them(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def first_channel(first: torch.Tensor, second: torch.Tensor, **settings: object) -> torch.Tensor:
        assert settings == {"net_type": "alex", "normalize": True}
        assert first.shape == second.shape == (2, 3, 16, 20)
        assert first.dtype == second.dtype == torch.float32
        return (first - second)[:, 0].abs().mean()

    (hub / "checkpoints").mkdir()
    (hub / "checkpoints" / "alexnet-owt-7be5be79.pth").write_bytes(b"")
    monkeypatch.setattr(torchmetrics.functional.image, "learned_perceptual_image_patch_similarity", first_channel)
    clip = np.zeros((2, 16, 20, 3))
    red = clip + np.array([0.25, 0.5, 0.5])
    assert video_lpips(red, clip) == 0.25
    assert video_lpips(red + 1, clip) == 1.0  # values over 1 count as 1
    with pytest.raises(ValueError, match="they must be the same"):
        video_lpips(red[:1], clip)


def test_importing_metrics_leaves_torchmetrics_unloaded() -> None:
    command = "import sys, mixcache.metrics; sys.exit('torchmetrics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
