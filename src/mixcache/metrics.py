"""How near a clip is to a reference: PSNR, SSIM and LPIPS, by torchmetrics."""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

import numpy as np
import torch


def video_psnr(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> float:
    """Peak signal-to-noise ratio in decibels over the whole clip's mean squared error; `math.inf` for identical clips.

    Both have shape (num_frames, height, width, 3) and float values in [0, 1]; anything else raises ValueError.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    first, second = _as_pair(video, reference)
    return float(peak_signal_noise_ratio(first, second, data_range=1.0))


def video_ssim(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> float:
    """Structural similarity, the mean over frames, at most 1 (identical clips).

    Both have shape (num_frames, height, width, 3) and float values in [0, 1], with frames of at least 11 by 11 pixels
    (the window); anything else raises ValueError.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    first, second = _as_pair(video, reference)
    _, height, width, _ = first.shape
    if min(height, width) < 11:
        raise ValueError(f"frames are {height} by {width} pixels; SSIM needs at least 11 by 11 for its window")
    preds, target = first.float().permute(0, 3, 1, 2), second.float().permute(0, 3, 1, 2)
    return float(structural_similarity_index_measure(preds, target, data_range=1.0))


@functools.cache
def _has_lpips() -> bool:
    checkpoints = Path(torch.hub.get_dir()) / "checkpoints"
    return importlib.util.find_spec("torchvision") is not None and any(checkpoints.glob("alexnet-*.pth"))


def video_lpips(video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor) -> float | None:
    """Learned perceptual distance (LPIPS, AlexNet), the mean over frames; 0 for identical clips.

    Clips as for `video_psnr`. None where torchvision, or AlexNet's weights in torch's hub folder, are not at hand:
    nothing is downloaded.
    """
    if not _has_lpips():
        return None
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    first, second = (clip.float().permute(0, 3, 1, 2).clamp(0, 1) for clip in _as_pair(video, reference))
    return float(learned_perceptual_image_patch_similarity(first, second, net_type="alex", normalize=True))


def _as_pair(
    video: np.ndarray | torch.Tensor, reference: np.ndarray | torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (torch.as_tensor(clip).detach() for clip in (video, reference))
    shape = tuple(first.shape)
    if first.shape != second.shape:
        raise ValueError(f"video has shape {shape} but its reference {tuple(second.shape)}; they must be the same")
    if first.ndim != 4 or first.shape[-1] != 3 or 0 in first.shape:
        raise ValueError(f"video has shape {shape}; it must be (num_frames, height, width, 3), none of them 0")
    if not (first.is_floating_point() and second.is_floating_point()):
        raise ValueError(
            f"video has {first.dtype} and its reference {second.dtype} values; they must be floats in [0, 1], "
            "so divide bytes by 255"
        )
    return first.to("cpu", torch.float64), second.to("cpu", torch.float64)
