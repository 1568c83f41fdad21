"""Trains the built-in model's video autoencoder (AutoencoderKLWan) on drawn clips: single frames first, then clips,
then its decoder alone, on small clips and on clips of full size, so that latents that a denoiser is trained on
meanwhile stay what they are.

    python training/train_vae.py --out training/runs/vae

Writes the EMA weights as a diffusers folder with the latents' mean and standard deviation in its config, and
`figures.json` with the reconstruction PSNR on held-out clips.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders import autoencoder_kl_wan as wan_vae

from mixcache.zoo import world

from drawing import draw_batch
from loop import LoopConfig, clip_psnr, train

CONFIG = dict(
    base_dim=16,
    z_dim=20,
    dim_mult=[2, 4, 4],
    num_res_blocks=1,
    temperal_downsample=[True, True],
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_spatial=8,
    scale_factor_temporal=4,
)
KL_WEIGHT = 3e-5
FIRST_LOG_VARIANCE = -4.0
LATENT_NOISE = 0.05
SMALL_SIDE = 64
"""Height and width in pixels of all but the last stage."""


def convolve(conv: wan_vae.WanCausalConv3d, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
    """A causal convolution; on a lone frame only the kernel's last slice meets data, so the other two are left out."""
    if x.shape[2] > 1 or cache_x is not None:
        return convolve_clip(conv, x, cache_x)
    padding = (conv._padding[2], conv._padding[0])
    return F.conv2d(x[:, :, 0], conv.weight[:, :, -1], conv.bias, stride=conv.stride[1:], padding=padding)[:, :, None]


convolve_clip = wan_vae.WanCausalConv3d.forward
wan_vae.WanCausalConv3d.forward = convolve


def decode(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """As `vae.decode`, without the clamp to [-1, 1] that would stop the gradient."""
    vae.clear_cache()
    latents, chunks = vae.post_quant_conv(latents), []
    for i in range(latents.shape[2]):
        vae._conv_idx = [0]
        state = {"feat_cache": vae._feat_map, "feat_idx": vae._conv_idx}
        chunks.append(vae.decoder(latents[:, :, i : i + 1], first_chunk=i == 0, **state))
    vae.clear_cache()
    return wan_vae.unpatchify(torch.cat(chunks, 2), vae.config.patch_size)


def reconstruction_loss(vae: AutoencoderKLWan, clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    with torch.autocast(clips.device.type, torch.bfloat16):
        posterior = vae.encode(clips).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator).to(clips)
        decoded = decode(vae, latents)
    error = decoded.float() - clips
    kl = 0.5 * (posterior.mean.float() ** 2 + posterior.var.float() - 1 - posterior.logvar.float()).mean()
    return (error**2).mean() + 0.1 * error.abs().mean() + KL_WEIGHT * kl


def sharpening_loss(vae: AutoencoderKLWan, clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Of the decoder alone, on latents that a denoiser could have missed a little; L1 counts more, for edges."""
    with torch.autocast(clips.device.type, torch.bfloat16):
        with torch.no_grad():
            mean = vae.encode(clips).latent_dist.mean
        noise = torch.randn(mean.shape, generator=generator).to(mean)
        decoded = decode(vae, mean + LATENT_NOISE * mean.std() * noise)
    error = decoded.float() - clips
    return (error**2).mean() + 0.5 * error.abs().mean()


def scenes_at(step: int, num_scenes: int, seed: int) -> list[world.Scene]:
    rng = np.random.default_rng((seed, step))
    return world.sample_scenes(num_scenes, int(rng.integers(2**62)), held_out=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("training/runs/vae"))
    parser.add_argument("--frame-steps", type=int, default=500)
    parser.add_argument("--clip-steps", type=int, default=750)
    parser.add_argument("--decoder-steps", type=int, default=900)
    parser.add_argument("--full-size-steps", type=int, default=300)
    parser.add_argument(
        "--batch", type=int, default=4, help="clips in a step; a frame step takes six times as many frames"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    vae = AutoencoderKLWan(**CONFIG, latents_mean=[0.0] * CONFIG["z_dim"], latents_std=[1.0] * CONFIG["z_dim"]).to(
        device
    )

    with torch.no_grad():
        vae.quant_conv.bias[CONFIG["z_dim"] :] = FIRST_LOG_VARIANCE

    def frame_loss(step: int) -> torch.Tensor:
        clips = draw_batch(
            scenes_at(step, 3 * args.batch, args.seed), num_frames=5, height=SMALL_SIDE, width=SMALL_SIDE
        )
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        picks = torch.randperm(5, generator=generator)[:2]
        frames = clips[:, :, picks].transpose(1, 2).flatten(0, 1)[:, :, None]
        return reconstruction_loss(vae, frames.to(device), generator)

    def small_clips(step: int, seed: int) -> torch.Tensor:
        return draw_batch(scenes_at(step, args.batch, seed), height=SMALL_SIDE, width=SMALL_SIDE).to(device)

    def clip_loss(step: int) -> torch.Tensor:
        clips = small_clips(step, args.seed + 1)
        return reconstruction_loss(vae, clips, torch.Generator().manual_seed(args.seed * 1_000_003 + step))

    def decoder_loss(step: int) -> torch.Tensor:
        clips = small_clips(step, args.seed + 2)
        return sharpening_loss(vae, clips, torch.Generator().manual_seed(args.seed * 1_000_003 + step))

    def full_size_loss(step: int) -> torch.Tensor:
        clips = draw_batch(scenes_at(step, args.batch // 2, args.seed + 3)).to(device)
        return sharpening_loss(vae, clips, torch.Generator().manual_seed(args.seed * 1_000_003 + step))

    frames = LoopConfig(num_steps=args.frame_steps, learning_rate=2e-3, muon_learning_rate=0.02)
    vae.load_state_dict(train(vae, frame_loss, frames, args.out / "frames.pt", device))
    clips = LoopConfig(num_steps=args.clip_steps, learning_rate=2e-3, muon_learning_rate=0.012)
    vae.load_state_dict(train(vae, clip_loss, clips, args.out / "clips.pt", device))
    vae.requires_grad_(False)
    vae.decoder.requires_grad_(True)
    vae.post_quant_conv.requires_grad_(True)
    decoder = LoopConfig(num_steps=args.decoder_steps, learning_rate=1e-3, muon_learning_rate=0.008)
    vae.load_state_dict(train(vae, decoder_loss, decoder, args.out / "decoder.pt", device))
    full_size = LoopConfig(num_steps=args.full_size_steps, learning_rate=1e-3, muon_learning_rate=0.006)
    vae.load_state_dict(train(vae, full_size_loss, full_size, args.out / "full-size.pt", device))
    finish(vae.eval(), args.out)


@torch.no_grad()
def finish(vae: AutoencoderKLWan, out: Path) -> None:
    """Measures the latents on training captions and the reconstruction on held-out ones, and saves the autoencoder."""
    device = vae.device
    seen = draw_batch(world.sample_scenes(96, 77, held_out=False)).to(device)
    latents = torch.cat([vae.encode(part).latent_dist.mean for part in seen.split(8)]).transpose(0, 1).flatten(1)
    vae.register_to_config(latents_mean=latents.mean(1).tolist(), latents_std=latents.std(1).tolist())
    unseen = draw_batch(world.sample_scenes(64, 78, held_out=True)).to(device)
    psnrs = []
    for part in unseen.split(8):
        decoded = vae.decode(vae.encode(part).latent_dist.mode()).sample
        psnrs.append(clip_psnr(decoded, part))
    psnr = torch.cat(psnrs)
    figures = {
        "held_out_psnr_db": psnr.mean().item(),
        "held_out_psnr_db_lowest": psnr.min().item(),
        "num_clips": len(psnr),
    }
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")
    vae.save_pretrained(out / "vae")
    print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main()
