"""Trains an autoencoder of another family on the latents of `shapes-wan`: its encoder to find them in a clip, its
decoder to give the clip back from them. First on single frames, then on clips.

    python training/distil_vae.py --model shapes-hunyuan --out training/runs/shapes-hunyuan

Writes the EMA weights as a diffusers folder, and `vae-figures.json` with the PSNR on held-out clips.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_cogvideox as cogvideox_vae
from diffusers.models.autoencoders import autoencoder_kl_hunyuan_video as hunyuan_vae

from mixcache.zoo import folder, world

from drawing import draw_batch
from loop import LoopConfig, clip_psnr, train
from students import STUDENTS, load_latents
from train_transformer import latent_scale

LATENT_NOISE = 0.05
"""Added to the decoder's latents, which a denoiser misses a little."""
LOG_VARIANCE = -6.0
"""That the encoder is to claim; nothing samples from it."""
ENCODER_SHARE = 4
"""The encoder sees one clip in so many of a batch: making videos needs the decoder alone."""


def convolve_frame(conv: torch.nn.Conv3d, frame: torch.Tensor, padding: tuple[int, int]) -> torch.Tensor:
    """A convolution of a frame that stands still: the kernel's slices all meet the same data, so they are summed."""
    return F.conv2d(frame[:, :, 0], conv.weight.sum(2), conv.bias, stride=conv.stride[1:], padding=padding)[:, :, None]


def convolve_hunyuan(conv: hunyuan_vae.HunyuanVideoCausalConv3d, x: torch.Tensor) -> torch.Tensor:
    if x.shape[2] > 1 or conv.conv.kernel_size[0] == 1:
        return convolve_hunyuan_clip(conv, x)
    left, right, top, bottom, _, _ = conv.time_causal_padding
    return convolve_frame(conv.conv, F.pad(x, (left, right, top, bottom, 0, 0), mode=conv.pad_mode), (0, 0))


def convolve_cogvideox(
    conv: cogvideox_vae.CogVideoXCausalConv3d, x: torch.Tensor, conv_cache: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    if x.shape[2] > 1 or conv_cache is not None or conv.time_kernel_size == 1:
        return convolve_cogvideox_clip(conv, x, conv_cache)
    return convolve_frame(conv.conv, x, (conv.height_pad, conv.width_pad)), x.repeat(1, 1, conv.time_pad, 1, 1)


convolve_hunyuan_clip = hunyuan_vae.HunyuanVideoCausalConv3d.forward
hunyuan_vae.HunyuanVideoCausalConv3d.forward = convolve_hunyuan
convolve_cogvideox_clip = cogvideox_vae.CogVideoXCausalConv3d.forward
cogvideox_vae.CogVideoXCausalConv3d.forward = convolve_cogvideox


def loss_of(
    vae: torch.nn.Module, clips: torch.Tensor, latents: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Of decoder and encoder, which share no weights. `vae.decode` is what a pipeline calls, blending and all."""
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    part = slice(0, max(1, len(clips) // ENCODER_SHARE))
    with torch.autocast(clips.device.type, torch.bfloat16):
        decoded = vae.decode(latents + LATENT_NOISE * noise).sample
        posterior = vae.encode(clips[part]).latent_dist
    error = decoded.float() - clips
    missed = (posterior.mean.float() - latents[part]).square().mean()
    claimed = (posterior.logvar.float() - LOG_VARIANCE).square().mean()
    return error.square().mean() + 0.25 * error.abs().mean() + 0.1 * missed + 1e-3 * claimed


@torch.no_grad()
def set_still(vae: torch.nn.Module) -> None:
    """Moves what a kernel learnt on single frames to its last slice in time, so that a clip is first taken frame by
    frame."""
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d) and module.kernel_size[0] > 1:
            whole = module.weight.sum(2)
            module.weight.zero_()
            module.weight[:, :, -1] = whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=STUDENTS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--latents", type=Path, default=Path("training/runs/transformer-4"), help="folder of train_transformer.py"
    )
    parser.add_argument("--clip-seed", type=int, default=1000, help="that the clips of the latents were drawn with")
    parser.add_argument("--frame-steps", type=int, default=800)
    parser.add_argument("--clip-steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=2, help="clips in a step; a frame step takes eight times as many")
    parser.add_argument("--num-held-out", type=int, default=32, help="clips that the PSNR is measured on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    student = STUDENTS[args.model]
    vae = student.vae_class(**student.vae).to(device)
    print({name: sum(p.numel() for p in part.parameters()) for name, part in vae.named_children()}, flush=True)
    latents, scenes = load_latents(args.latents, args.clip_seed)

    def loss_at(step: int, num_clips: int, num_frames: int) -> torch.Tensor:
        """Latents of the first frame, or of all frames, and what they were encoded from."""
        rows = np.random.default_rng((args.seed, num_frames, step)).integers(len(scenes), size=num_clips)
        clips = draw_batch([scenes[row] for row in rows], num_frames=num_frames).to(device)
        chosen = torch.from_numpy(latents[rows][:, :, : (num_frames + 3) // 4]).float().to(device)
        return loss_of(vae, clips, chosen, torch.Generator().manual_seed(args.seed * 1_000_003 + step))

    frames = LoopConfig(num_steps=args.frame_steps, learning_rate=2e-3, muon_learning_rate=0.02)
    vae.load_state_dict(
        train(vae, lambda step: loss_at(step, 8 * args.batch, 1), frames, args.out / "frames.pt", device)
    )
    set_still(vae)
    clips = LoopConfig(num_steps=args.clip_steps, learning_rate=2e-3, muon_learning_rate=0.012)
    vae.load_state_dict(
        train(vae, lambda step: loss_at(step, args.batch, world.NUM_FRAMES), clips, args.out / "clips.pt", device)
    )
    finish(vae.eval(), args.out, args.num_held_out)


@torch.no_grad()
def finish(vae: torch.nn.Module, out: Path, num_clips: int) -> None:
    """Measures encoder and decoder on held-out clips and saves the autoencoder."""
    teacher = AutoencoderKLWan.from_pretrained(folder("shapes-wan") / "vae", torch_dtype=torch.float32).to(vae.device)
    mean, std = latent_scale(teacher)
    unseen = draw_batch(world.sample_scenes(num_clips, 78, held_out=True)).to(vae.device)
    own, shared, missed = [], [], []
    for clips in unseen.split(4):
        latents = (teacher.encode(clips).latent_dist.mode() - mean) / std
        found = vae.encode(clips).latent_dist.mode()
        missed.append((found - latents).square().mean())
        for psnrs, source in ((own, found), (shared, latents)):
            psnrs.append(clip_psnr(vae.decode(source).sample.clamp(-1, 1), clips))
    figures = {"num_clips": len(unseen), "encoder_mean_squared_error": torch.stack(missed).mean().item()}
    for name, psnrs in (("held_out", own), ("from_shared_latents", shared)):
        psnr = torch.cat(psnrs)
        figures |= {f"{name}_psnr_db": psnr.mean().item(), f"{name}_psnr_db_lowest": psnr.min().item()}
    (out / "vae-figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    vae.save_pretrained(out / "vae")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
