"""Trains the denoiser (WanTransformer3DModel) and the text encoder (UMT5EncoderModel) of `shapes-wan` on the
autoencoder's latents.

    python training/train_transformer.py --vae training/runs/vae/vae --out training/runs/transformer

Flow matching: x = (1 - sigma) x0 + sigma noise, the target is noise - x0. One caption in ten is dropped, for guidance.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import UMT5EncoderModel

from mixcache.zoo import world

from drawing import draw_batch
from loop import LoopConfig, avoid_fused_attention, train
from text_encoders import build_text_encoders, embeddings
from tokenizer import build_tokenizer, tokenized

TRANSFORMER = dict(
    patch_size=(1, 2, 2),
    num_attention_heads=5,
    attention_head_dim=32,
    in_channels=20,
    out_channels=20,
    text_dim=128,
    freq_dim=128,
    ffn_dim=480,
    num_layers=12,
)
CAPTION_DROPOUT = 0.1
PAIR_WEIGHT = 3.0
"""How much more often than a clip of one object a clip of two is seen, unless told otherwise."""
SPIN_WEIGHT = 2.0
"""How much more often a clip with something spinning is seen: of all motions it is learnt last."""
ADAM_ONLY = ("patch_embedding", "proj_out", "condition_embedder", "shared", "embed_tokens", "relative_attention_bias")


def latent_scale(vae: AutoencoderKLWan) -> tuple[torch.Tensor, ...]:
    """Mean and standard deviation by which the pipeline normalises latents, each [1, C, 1, 1, 1]."""
    values = (vae.config.latents_mean, vae.config.latents_std)
    return tuple(torch.tensor(value, device=vae.device).view(1, -1, 1, 1, 1) for value in values)


@torch.no_grad()
def encode_clips(
    vae: AutoencoderKLWan, num_clips: int, side: int, seed: int, folder: Path
) -> tuple[np.ndarray, list[str]]:
    """Latents of drawn clips of side x side pixels, normalised as the pipeline does, kept in a file that a cut run
    fills up on the next start."""
    scenes = world.sample_scenes(num_clips, seed, held_out=False)
    mean, std = latent_scale(vae)
    path, done_path, part = folder / "latents.npy", folder / "latents.done", 16
    factor = vae.config.scale_factor_spatial
    shape = (num_clips, vae.config.z_dim, 5, side // factor, side // factor)
    num_done = int(done_path.read_text()) if done_path.exists() else 0
    latents = np.lib.format.open_memmap(path, mode="r+" if num_done else "w+", dtype=np.float16, shape=shape)
    for start in range(num_done, num_clips, part):
        clips = draw_batch(scenes[start : start + part], height=side, width=side).to(vae.device)
        with torch.autocast(clips.device.type, torch.bfloat16):
            encoded = vae.encode(clips).latent_dist.mean
        latents[start : start + part] = ((encoded.float() - mean) / std).half().cpu().numpy()
        if start // part % 20 == 0 or start + part >= num_clips:
            latents.flush()
            done_path.write_text(str(min(start + part, num_clips)))
            print(f"encoded {min(start + part, num_clips)} of {num_clips} clips", flush=True)
    return np.asarray(latents), [scene.caption for scene in scenes]


def sampling_weight(caption: str, pair_weight: float) -> float:
    """How often a clip of this caption is seen, against one of a single object that does not spin."""
    return (pair_weight if " and " in caption else 1.0) * (SPIN_WEIGHT if "spinning" in caption else 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vae", type=Path, default=Path("training/runs/vae/vae"))
    parser.add_argument("--out", type=Path, default=Path("training/runs/transformer"))
    parser.add_argument("--init", type=Path, help="folder of an earlier training to start from, of smaller clips say")
    parser.add_argument("--text-encoder", type=Path, help="a text encoder trained before, kept as it is")
    parser.add_argument("--side", type=int, default=world.SIDE, help="height and width of the clips in pixels")
    parser.add_argument("--num-clips", type=int, default=10000)
    parser.add_argument("--num-steps", type=int, default=6100)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--sigma-shift", type=float, default=4.0, help="how much training prefers high noise, where layout is settled"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="of order, noise and first weights; a continuation wants another"
    )
    parser.add_argument(
        "--pair-weight", type=float, default=PAIR_WEIGHT, help="how much more often clips of two objects are seen"
    )
    parser.add_argument("--clip-seed", type=int, default=1000, help="of the drawn clips")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    device = torch.device(args.device)
    torch.manual_seed(args.seed)

    vae = AutoencoderKLWan.from_pretrained(args.vae).to(device).eval()
    latents, captions = encode_clips(vae, args.num_clips, args.side, args.clip_seed, args.out)
    tokenizer = build_tokenizer()
    tokens = tokenized(tokenizer, [*captions, ""])
    ids, masks = tokens.input_ids.to(device), tokens.attention_mask.to(device)

    model = torch.nn.ModuleDict(
        {
            "transformer": WanTransformer3DModel(**TRANSFORMER),
            **build_text_encoders("shapes-wan"),
        }
    ).to(device)
    if args.init:
        for name, part in model.items():
            part.load_state_dict(type(part).from_pretrained(args.init / name).state_dict())
    if args.text_encoder:
        model["text_encoder"] = UMT5EncoderModel.from_pretrained(args.text_encoder).to(device).requires_grad_(False)
    print({name: sum(p.numel() for p in part.parameters()) for name, part in model.items()}, flush=True)
    avoid_fused_attention(device)
    if not args.no_compile:
        model["transformer"].compile_repeated_blocks(fullgraph=True)

    shift = args.sigma_shift
    weights = torch.tensor([sampling_weight(caption, args.pair_weight) for caption in captions])

    def loss_at(step: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = torch.multinomial(weights, args.batch, replacement=True, generator=rng)
        x0 = torch.from_numpy(latents[rows.numpy()]).float().to(device)
        noise = torch.randn(x0.shape, generator=rng).to(device)
        uniform = (torch.arange(args.batch) + torch.rand(args.batch, generator=rng)) / args.batch
        sigma = (shift * uniform / (1 + (shift - 1) * uniform)).to(device)
        dropped = torch.rand(args.batch, generator=rng) < CAPTION_DROPOUT
        rows = torch.where(dropped, len(captions), rows).to(device)
        share = sigma.view(-1, 1, 1, 1, 1)
        with torch.autocast(device.type, torch.bfloat16):
            text = embeddings(model["text_encoder"], ids[rows], masks[rows])
            velocity = model["transformer"](
                hidden_states=(1 - share) * x0 + share * noise,
                timestep=sigma * 1000,
                encoder_hidden_states=text,
                return_dict=False,
            )[0]
        return (velocity.float() - (noise - x0)).square().mean()

    config = LoopConfig(num_steps=args.num_steps, learning_rate=1.5e-3, muon_learning_rate=0.02, ema_decay=0.998)
    ema = train(model, loss_at, config, args.out / "checkpoint.pt", device, ADAM_ONLY)
    model.load_state_dict(ema)
    model["transformer"].save_pretrained(args.out / "transformer")
    model["text_encoder"].save_pretrained(args.out / "text_encoder")


if __name__ == "__main__":
    main()
