"""Trains the denoiser of another family on what the denoiser of `shapes-wan` answers, on the latents that both share.

    python training/distil_transformer.py --model shapes-hunyuan --out training/runs/shapes-hunyuan

Takes the text encoders that `train_text_encoder.py` left in `--out`, and leaves them as they are. Begins with the
teacher's own weights where they have a counterpart (`warm_start.py`). In the first `--hint-steps` steps every block is
also to give what the teacher's block in its place gives, and guidance is 1.

HunyuanVideo: flow matching as its teacher's, x = (1 - sigma) x0 + sigma noise. The guidance scale is an input, then
drawn from GUIDANCE, and the target is the teacher's guided velocity at that scale. CogVideoX: x = a x0 + s noise of its
scheduler, a² + s² = 1; x / (a + s) is the teacher's point at sigma = s / (a + s), and its velocity there gives the
target a noise - s x0. One caption in ten is dropped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from diffusers import CogVideoXDDIMScheduler, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModel, CLIPTextModel, PreTrainedModel, T5EncoderModel, UMT5EncoderModel

from mixcache.zoo import folder
from mixcache.zoo.tokenizer import build_tokenizer, tokenized

from loop import LoopConfig, avoid_fused_attention, train
from students import COGVIDEOX_SCHEDULER, LATENT_SIDE, STUDENTS, load_latents
from text_encoders import embeddings
from train_transformer import CAPTION_DROPOUT, PAIR_WEIGHT, sampling_weight
from warm_start import copy_teacher

GUIDANCE = (1.0, 8.0)
"""Range of the scales that an embedded guidance is taught."""
ADAM_ONLY = (
    ".linear.",  # modulations
    "transformer.patch_embed",
    "transformer.x_embedder",
    "transformer.time_embedding",
    "time_text_embed",
    "context_embedder.proj_in",
    "transformer.proj_out",
)
Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The teacher's velocity at points [B, C, F, H, W] and their sigmas, for the captions in these rows."""


@torch.no_grad()
def embed_captions(encoder: PreTrainedModel, captions: list[str], device: torch.device) -> torch.Tensor:
    """What the denoiser gets of every caption, [captions, tokens, width]."""
    tokens = tokenized(build_tokenizer(), captions)
    pairs = zip(tokens.input_ids.split(500), tokens.attention_mask.split(500), strict=True)
    return torch.cat([embeddings(encoder, ids.to(device), mask.to(device)) for ids, mask in pairs])


def watch(blocks: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """A list that gets what each block makes of the latents, at every call; whoever reads it empties it."""
    seen: list[torch.Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda block, args, out: seen.append(out[0] if isinstance(out, tuple) else out))
    return seen


def missed_hints(seen: list[torch.Tensor], wanted: list[torch.Tensor]) -> torch.Tensor:
    """Mean over the blocks of the squared relative error of what they give."""
    pairs = zip(seen, wanted, strict=True)
    shares = [(x.float() - y.float()).square().mean() / y.float().square().mean() for x, y in pairs]
    return torch.stack(shares).mean()


def shifted(uniform: torch.Tensor, shift: float) -> torch.Tensor:
    return shift * uniform / (1 + (shift - 1) * uniform)


def hunyuan_loss(
    transformer: torch.nn.Module,
    velocity: Velocity,
    text: dict[str, torch.Tensor],
    masks: torch.Tensor,
    shift: float,
) -> Callable[..., torch.Tensor]:
    """The loss of a batch for `shapes-hunyuan`."""

    def loss_of(
        x0: torch.Tensor, rows: torch.Tensor, uniform: torch.Tensor, rng: torch.Generator, guided: bool
    ) -> torch.Tensor:
        noise = torch.randn(x0.shape, generator=rng).to(x0)
        sigma = shifted(uniform, shift)
        share = sigma.view(-1, 1, 1, 1, 1)
        point = (1 - share) * x0 + share * noise
        if guided:
            low, high = GUIDANCE
            guidance = (low + (high - low) * torch.rand(len(x0), generator=rng)).to(x0)
            empty = torch.full_like(rows, len(masks) - 1)
            told, untold = velocity(point.repeat(2, 1, 1, 1, 1), sigma.repeat(2), torch.cat([rows, empty])).chunk(2)
        else:
            guidance = torch.ones(len(x0)).to(x0)
            told = untold = velocity(point, sigma, rows)
        with torch.autocast(x0.device.type, torch.bfloat16):
            answer = transformer(
                hidden_states=point,
                timestep=sigma * 1000,
                encoder_hidden_states=text["text_encoder"][rows],
                encoder_attention_mask=masks[rows],
                pooled_projections=text["text_encoder_2"][rows, 0],
                guidance=guidance * 1000,
                return_dict=False,
            )[0]
        scale = guidance.view(-1, 1, 1, 1, 1)
        missed = answer.float() - (untold + scale * (told - untold))
        return (missed.square() / scale).mean()  # a large scale is not to outweigh all others

    return loss_of


def cogvideox_alphas() -> torch.Tensor:
    """Share of the signal in the variance at each of 1,000 timesteps."""
    return CogVideoXDDIMScheduler(**COGVIDEOX_SCHEDULER).alphas_cumprod.float()


def teacher_sigmas(model: str) -> torch.Tensor:
    """The teacher's noise level at each of a model's 1,000 timesteps."""
    if model == "shapes-hunyuan":
        return torch.arange(1000) / 1000
    alphas = cogvideox_alphas()
    a, s = alphas.sqrt(), (1 - alphas).sqrt()
    return s / (a + s)


def cogvideox_loss(
    transformer: torch.nn.Module,
    velocity: Velocity,
    text: dict[str, torch.Tensor],
    masks: torch.Tensor,
    shift: float,
) -> Callable[..., torch.Tensor]:
    """The loss of a batch for `shapes-cogvideox`, at the whole timesteps of its scheduler; no guidance is built in."""
    alphas = cogvideox_alphas().to(masks.device)
    side = LATENT_SIDE // transformer.config.patch_size
    rotary = get_3d_rotary_pos_embed(
        embed_dim=transformer.config.attention_head_dim,
        crops_coords=((0, 0), (side, side)),
        grid_size=(side, side),
        temporal_size=5,
        device=masks.device,
    )

    def loss_of(
        x0: torch.Tensor, rows: torch.Tensor, uniform: torch.Tensor, rng: torch.Generator, guided: bool
    ) -> torch.Tensor:
        noise = torch.randn(x0.shape, generator=rng).to(x0)
        timestep = (shifted(uniform, shift) * len(alphas)).long().clamp(max=len(alphas) - 1)
        a, s = alphas[timestep].sqrt().view(-1, 1, 1, 1, 1), (1 - alphas[timestep]).sqrt().view(-1, 1, 1, 1, 1)
        point = (a * x0 + s * noise) / (a + s)
        target = (a - s) * point + velocity(point, (s / (a + s)).flatten(), rows) / (a + s)
        with torch.autocast(x0.device.type, torch.bfloat16):
            answer = transformer(
                hidden_states=((a + s) * point).transpose(1, 2),
                timestep=timestep,
                encoder_hidden_states=text["text_encoder"][rows],
                image_rotary_emb=rotary,
                return_dict=False,
            )[0]
        return (answer.float().transpose(1, 2) - target).square().mean()

    return loss_of


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=STUDENTS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="folder of an earlier training to start from")
    parser.add_argument(
        "--latents", type=Path, default=Path("training/runs/transformer-4"), help="folder of train_transformer.py"
    )
    parser.add_argument("--clip-seed", type=int, default=1000, help="that the clips of the latents were drawn with")
    parser.add_argument("--num-steps", type=int, default=2500)
    parser.add_argument(
        "--hint-steps", type=int, help="in which each block learns from the teacher's; 1000, and with --init none"
    )
    parser.add_argument("--muon-learning-rate", type=float, default=0.01)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--shift", type=float, help="how much training prefers high noise; 5 for HunyuanVideo, 1 for CogVideoX"
    )
    parser.add_argument("--seed", type=int, default=0, help="of order, noise and first weights")
    parser.add_argument(
        "--pair-weight", type=float, default=PAIR_WEIGHT, help="how much more often clips of two objects are seen"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.hint_steps is None:
        args.hint_steps = 0 if args.init else 1000
    return args


def build_student(model: str, init: Path | None, teacher: Path) -> torch.nn.Module:
    """The denoiser with its first weights: of an earlier training in the folder `init`, else of the teacher's in the
    folder `teacher`."""
    student = STUDENTS[model]
    if init:
        return student.transformer_class.from_pretrained(init / "transformer")
    transformer = student.transformer_class(**student.transformer)
    start = WanTransformer3DModel.from_pretrained(teacher, torch_dtype=torch.float32)
    copy_teacher(transformer, start, teacher_sigmas(model))
    return transformer


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    hunyuan = args.model == "shapes-hunyuan"
    shift = args.shift or (5.0 if hunyuan else 1.0)

    latents, scenes = load_latents(args.latents, args.clip_seed)
    captions = [scene.caption for scene in scenes]
    masks = tokenized(build_tokenizer(), [*captions, ""]).attention_mask.to(device)
    encoders: dict[str, PreTrainedModel] = {
        "text_encoder": (AutoModel if hunyuan else T5EncoderModel).from_pretrained(args.out / "text_encoder")
    }
    if hunyuan:
        encoders["text_encoder_2"] = CLIPTextModel.from_pretrained(args.out / "text_encoder_2")
    text = {name: embed_captions(part.to(device).eval(), [*captions, ""], device) for name, part in encoders.items()}

    teacher_folder = folder("shapes-wan")
    teacher = WanTransformer3DModel.from_pretrained(teacher_folder / "transformer", torch_dtype=torch.bfloat16)
    teacher = teacher.to(device).eval().requires_grad_(False)
    reader = UMT5EncoderModel.from_pretrained(teacher_folder / "text_encoder", dtype=torch.float32).to(device).eval()
    teacher_text = embed_captions(reader, [*captions, ""], device).bfloat16()

    @torch.no_grad()
    def velocity(points: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):  # forwards the fused attention is the faster
            return teacher(points.bfloat16(), sigma * 1000, teacher_text[rows], return_dict=False)[0].float()

    transformer = build_student(args.model, args.init, teacher_folder / "transformer").to(device).train()
    print(f"transformer: {sum(p.numel() for p in transformer.parameters())} weights", flush=True)
    avoid_fused_attention(device)
    blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
    seen, wanted = watch(blocks), watch(teacher.blocks)
    loss_of = (hunyuan_loss if hunyuan else cogvideox_loss)(transformer, velocity, text, masks, shift)
    weights = torch.tensor([sampling_weight(caption, args.pair_weight) for caption in captions])

    def loss_at(step: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = torch.multinomial(weights, args.batch, replacement=True, generator=rng)
        x0 = torch.from_numpy(latents[rows.numpy()]).float().to(device)
        uniform = (torch.arange(args.batch) + torch.rand(args.batch, generator=rng)) / args.batch
        dropped = torch.rand(args.batch, generator=rng) < CAPTION_DROPOUT
        rows = torch.where(dropped, len(captions), rows)
        hinted = step < args.hint_steps
        loss = loss_of(x0, rows.to(device), uniform.to(device), rng, not hinted)
        if hinted:
            loss = loss + (1 - step / args.hint_steps) * missed_hints(seen, wanted)
        seen.clear()
        wanted.clear()
        return loss

    config = LoopConfig(
        num_steps=args.num_steps, learning_rate=1.5e-3, muon_learning_rate=args.muon_learning_rate, ema_decay=0.998
    )
    model = torch.nn.ModuleDict({"transformer": transformer})
    model.load_state_dict(train(model, loss_at, config, args.out / "transformer.pt", device, ADAM_ONLY))
    transformer.save_pretrained(args.out / "transformer")


if __name__ == "__main__":
    main()
