"""Trains the denoiser of another family on what the denoiser of `shapes-wan` answers, on the latents that both share.

    python training/distil_transformer.py --model shapes-hunyuan --out training/runs/shapes-hunyuan

Takes the text encoders that `train_text_encoder.py` left in `--out`, and leaves them as they are. Begins with the
teacher's own weights where they have a counterpart (`warm_start.py`). In the first `--hint-steps` steps every block is
also to give what the teacher has in its place (`hints.py`), and guidance is 1.

HunyuanVideo: flow matching as its teacher's, x = (1 - sigma) x0 + sigma noise. The guidance scale is an input, then
drawn from GUIDANCE, and the target is the teacher's guided velocity at that scale. CogVideoX: x = a x0 + s noise of its
scheduler, a² + s² = 1; x / (a + s) is the teacher's point at sigma = s / (a + s), and its velocity there gives the
target a noise - s x0.

Every noisy clip is seen twice, under its caption and under none or another one.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from diffusers import CogVideoXDDIMScheduler, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModel, CLIPTextModel, PreTrainedModel, T5EncoderModel, UMT5EncoderModel

from mixcache.zoo import folder

from counterparts import Words
from hints import Forcing, missed_hints, watch, watch_teacher
from loop import LoopConfig, avoid_fused_attention, train
from students import COGVIDEOX_SCHEDULER, LATENT_FRAMES, LATENT_SIDE, STRETCHES, STUDENTS, load_latents
from text_encoders import embeddings
from tokenizer import build_tokenizer, tokenized
from train_transformer import PAIR_WEIGHT, sampling_weight
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
OTHER_CAPTION, OTHER_CAPTION_FROM = 0.5, 0.6
"""How often the second caption of a pair is another one rather than none, where the uniform number that becomes the
noise level is above this: below it, what is drawn contradicts it."""
DIFFERENCE_WEIGHT, DIFFERENCE_FLOOR = 0.5, 0.03
"""Of the share missed of what tells a pair's captions apart, and what is added to its energy: a velocity's is about 1,
and a caption's part in it 0.003 at low noise and 0.08 at the highest."""
NUM_FITTED = 600
"""Captions on which the first weights of keys and values are fitted."""
Answers = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]
]
"""What a student answers and what it should, for clips, noise, uniform numbers, captions' rows and scales of guidance;
without these guidance is 1. The teacher is asked first, so that its latents are there when the student runs."""
Velocity = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""The teacher's velocity at points [B, C, F, H, W] and their sigmas, for the captions in these rows."""


@torch.no_grad()
def embed_captions(encoder: PreTrainedModel, captions: list[str], device: torch.device) -> torch.Tensor:
    """What the denoiser gets of every caption, [captions, tokens, width]."""
    tokens = tokenized(build_tokenizer(), captions)
    batches = zip(tokens.input_ids.split(500), tokens.attention_mask.split(500), strict=True)
    return torch.cat([embeddings(encoder, ids.to(device), mask.to(device)) for ids, mask in batches])


def missed_difference(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How much is missed of what tells the captions of a pair apart, [B, ...] with a pair's second half behind."""
    (first, second), (one, other) = answer.chunk(2), target.chunk(2)
    dims = tuple(range(1, answer.dim()))
    wanted = (one - other).square().mean(dims)
    return (((first - second) - (one - other)).square().mean(dims) / (wanted + DIFFERENCE_FLOOR)).mean()


def shifted(uniform: torch.Tensor, shift: float) -> torch.Tensor:
    return shift * uniform / (1 + (shift - 1) * uniform)


def hunyuan_answers(
    transformer: torch.nn.Module,
    velocity: Velocity,
    text: dict[str, torch.Tensor],
    masks: torch.Tensor,
    shift: float,
) -> Answers:
    """What `shapes-hunyuan` answers and what it should."""

    def answers(
        x0: torch.Tensor, noise: torch.Tensor, uniform: torch.Tensor, rows: torch.Tensor, guidance: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = shifted(uniform, shift)
        part = sigma.view(-1, 1, 1, 1, 1)
        point = (1 - part) * x0 + part * noise
        if guidance is None:
            guidance = torch.ones(len(x0)).to(x0)
            target = velocity(point, sigma, rows)
        else:
            half = len(x0) // 2  # the points of a pair are the same, so that one answer without a caption serves both
            empty = torch.full_like(rows[:half], len(masks) - 1)
            points, sigmas = torch.cat([point, point[:half]]), torch.cat([sigma, sigma[:half]])
            told, untold = velocity(points, sigmas, torch.cat([rows, empty])).split([2 * half, half])
            untold = untold.repeat(2, 1, 1, 1, 1)
            target = untold + guidance.view(-1, 1, 1, 1, 1) * (told - untold)
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
        root = guidance.sqrt().view(-1, 1, 1, 1, 1)  # a large scale is not to outweigh all others
        return answer.float() / root, target / root

    return answers


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


def cogvideox_answers(
    transformer: torch.nn.Module,
    velocity: Velocity,
    text: dict[str, torch.Tensor],
    masks: torch.Tensor,
    shift: float,
) -> Answers:
    """What `shapes-cogvideox` answers at the whole timesteps of its scheduler and what it should; no guidance is built
    in."""
    alphas = cogvideox_alphas().to(masks.device)
    side = LATENT_SIDE // transformer.config.patch_size
    rotary = get_3d_rotary_pos_embed(
        embed_dim=transformer.config.attention_head_dim,
        crops_coords=((0, 0), (side, side)),
        grid_size=(side, side),
        temporal_size=LATENT_FRAMES,
        device=masks.device,
    )

    def answers(
        x0: torch.Tensor, noise: torch.Tensor, uniform: torch.Tensor, rows: torch.Tensor, guidance: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
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
        return answer.float().transpose(1, 2), target

    return answers


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=STUDENTS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--latents", type=Path, default=Path("training/runs/transformer-4"), help="folder of train_transformer.py"
    )
    parser.add_argument("--clip-seed", type=int, default=1000, help="that the clips of the latents were drawn with")
    parser.add_argument("--num-steps", type=int, default=1700)
    parser.add_argument("--hint-steps", type=int, default=900, help="in which each block learns from the teacher's")
    parser.add_argument("--forced-steps", type=int, default=200, help="in which each block gets the teacher's latents")
    parser.add_argument("--batch", type=int, default=16, help="half of it are clips, each under two captions")
    parser.add_argument(
        "--shift", type=float, help="how much training prefers high noise; 5 for HunyuanVideo, 3 for CogVideoX"
    )
    parser.add_argument("--seed", type=int, default=0, help="of order, noise and first weights")
    parser.add_argument(
        "--pair-weight", type=float, default=PAIR_WEIGHT, help="how much more often clips of two objects are drawn"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.shift = args.shift or (5.0 if args.model == "shapes-hunyuan" else 3.0)
    return args


def embed_for_student(model: str, trained: Path, captions: list[str], device: torch.device) -> dict[str, torch.Tensor]:
    """What each of the student's text encoders, in the folder `trained`, makes of the captions."""
    encoders: dict[str, PreTrainedModel]
    if model == "shapes-hunyuan":
        encoders = {
            "text_encoder": AutoModel.from_pretrained(trained / "text_encoder"),
            "text_encoder_2": CLIPTextModel.from_pretrained(trained / "text_encoder_2"),
        }
    else:
        encoders = {"text_encoder": T5EncoderModel.from_pretrained(trained / "text_encoder")}
    return {name: embed_captions(encoder.to(device).eval(), captions, device) for name, encoder in encoders.items()}


def build_student(
    model: str, text: torch.Tensor, teacher_text: torch.Tensor, attended: torch.Tensor
) -> torch.nn.Module:
    """The denoiser with its first weights; from the captions' tokens, those of none last, it is fitted what each of the
    two makes of text. `attended` says which of them the student attends, bool [captions, tokens]."""
    student = STUDENTS[model]
    transformer = student.transformer_class(**student.transformer)
    teacher = WanTransformer3DModel.from_pretrained(folder("shapes-wan") / "transformer", torch_dtype=torch.float32)
    some = torch.randperm(len(text) - 1, generator=torch.Generator().manual_seed(0))[:NUM_FITTED]
    rows = torch.cat([some, torch.full((NUM_FITTED // 10,), len(text) - 1)])  # those without a caption count too
    with torch.no_grad():
        theirs = teacher.condition_embedder.text_embedder(teacher_text[rows].float())
    words = Words(text[rows], theirs, attended[rows])
    copy_teacher(transformer, teacher, STRETCHES[model], teacher_sigmas(model), words)
    return transformer


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    torch.manual_seed(args.seed)
    latents, scenes = load_latents(args.latents, args.clip_seed)
    captions = [*(scene.caption for scene in scenes), ""]
    text = embed_for_student(args.model, args.out, captions, device)
    teacher = WanTransformer3DModel.from_pretrained(folder("shapes-wan") / "transformer", torch_dtype=torch.bfloat16)
    teacher.to(device).eval().requires_grad_(False)
    reader = UMT5EncoderModel.from_pretrained(folder("shapes-wan") / "text_encoder", dtype=torch.float32)
    teacher_text = embed_captions(reader.to(device).eval(), captions, device).bfloat16()
    masks = tokenized(build_tokenizer(), captions).attention_mask
    attended = masks.bool() if args.model == "shapes-hunyuan" else torch.ones_like(masks, dtype=torch.bool)
    transformer = build_student(args.model, text["text_encoder"].cpu(), teacher_text.cpu(), attended)
    transformer.to(device).train()
    print(f"transformer: {sum(p.numel() for p in transformer.parameters())} weights", flush=True)
    avoid_fused_attention(device)
    pairs = draw_pairs(latents, captions, args, device)
    loss_at = build_loss(transformer, text, teacher, teacher_text, masks.to(device), pairs, args)
    config = LoopConfig(num_steps=args.num_steps, learning_rate=1.5e-3, muon_learning_rate=0.01, ema_decay=0.998)
    model = torch.nn.ModuleDict({"transformer": transformer})
    model.load_state_dict(train(model, loss_at, config, args.out / "transformer.pt", device, ADAM_ONLY))
    transformer.save_pretrained(args.out / "transformer")


def draw_pairs(
    latents: np.ndarray, captions: list[str], args: argparse.Namespace, device: torch.device
) -> Callable[[int], tuple[torch.Tensor, ...]]:
    """Clips, noise, uniform numbers, captions' rows and scales of guidance of a step, the same clips in both halves but
    under two captions."""
    weights = torch.tensor([sampling_weight(caption, args.pair_weight) for caption in captions[:-1]])
    half = args.batch // 2

    def pairs_of(step: int) -> tuple[torch.Tensor, ...]:
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows, others = torch.multinomial(weights, 2 * half, replacement=True, generator=rng).chunk(2)
        x0 = torch.from_numpy(latents[rows.numpy()]).float()
        noise = torch.randn(x0.shape, generator=rng)
        uniform = (torch.arange(half) + torch.rand(half, generator=rng)) / half
        told = (torch.rand(half, generator=rng) < OTHER_CAPTION) & (uniform > OTHER_CAPTION_FROM)
        seconds = torch.where(told, others, len(weights))
        low, high = GUIDANCE
        guidance = low + (high - low) * torch.rand(half, generator=rng)
        halves = ((x0, x0), (noise, noise), (uniform, uniform), (rows, seconds), (guidance, guidance))
        return tuple(torch.cat(both).to(device) for both in halves)

    return pairs_of


def build_loss(
    transformer: torch.nn.Module,
    text: dict[str, torch.Tensor],
    teacher: WanTransformer3DModel,
    teacher_text: torch.Tensor,
    masks: torch.Tensor,
    pairs: Callable[[int], tuple[torch.Tensor, ...]],
    args: argparse.Namespace,
) -> Callable[[int], torch.Tensor]:
    """The loss at a step: the answer, what tells the captions of a pair apart, and at first what the blocks give."""

    @torch.no_grad()
    def velocity(points: torch.Tensor, sigma: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):  # forwards the fused attention is the faster
            return teacher(points.bfloat16(), sigma * 1000, teacher_text[rows], return_dict=False)[0].float()

    blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
    stream, seen = watch_teacher(teacher, STRETCHES[args.model]), watch(blocks)
    forcing = Forcing(blocks, stream)
    build = hunyuan_answers if args.model == "shapes-hunyuan" else cogvideox_answers
    answers = build(transformer, velocity, text, masks, args.shift)

    def loss_at(step: int) -> torch.Tensor:
        seen.clear()
        stream.clear()
        x0, noise, uniform, rows, guidance = pairs(step)
        hinted = step < args.hint_steps
        forcing.on = hinted and step < args.forced_steps
        answer, target = answers(x0, noise, uniform, rows, None if hinted else guidance)
        loss = (answer - target).square().mean() + DIFFERENCE_WEIGHT * missed_difference(answer, target)
        if hinted:
            loss = loss + (1 - step / args.hint_steps) * missed_hints(seen, stream, forcing.on)
        return loss

    return loss_at


if __name__ == "__main__":
    main()
