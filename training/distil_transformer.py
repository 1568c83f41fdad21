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
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXDDIMScheduler, WanTransformer3DModel
from diffusers.models.embeddings import get_3d_rotary_pos_embed
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModel, CLIPTextModel, PreTrainedModel, T5EncoderModel, UMT5EncoderModel

from mixcache.zoo import folder
from mixcache.zoo.tokenizer import build_tokenizer, tokenized

from counterparts import Plan, Words
from loop import LoopConfig, avoid_fused_attention, train
from students import COGVIDEOX_SCHEDULER, LATENT_SIDE, STRETCHES, STUDENTS, load_latents
from text_encoders import embeddings
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
"""How often the second caption of a pair is another one rather than none, from this share of the timesteps on: below
it, what is drawn contradicts it."""
DIFFERENCE_WEIGHT, DIFFERENCE_FLOOR = 0.5, 0.03
NUM_FITTED = 600
"""Captions on which the first weights of keys and values are fitted."""
Answers = Callable[
    [torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None], tuple[torch.Tensor, torch.Tensor]
]
"""What a student answers and what it should, for clips, noise, uniform numbers, captions and scales of guidance."""
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


def watch_teacher(teacher: WanTransformer3DModel, plan: Plan) -> list[torch.Tensor]:
    """A list that gets the teacher's latents before its first block and at the end of each stretch of the `plan`."""
    seen: list[torch.Tensor] = []
    teacher.blocks[0].register_forward_pre_hook(lambda block, args: seen.append(args[0]))
    for block, part in plan:
        module = teacher.blocks[block]
        if part == "self":
            module.norm2.register_forward_pre_hook(lambda norm, args: seen.append(args[0]))
        else:
            module.register_forward_hook(lambda block, args, out: seen.append(out))
    return seen


class Forcing:
    """While `on`, every block gets the teacher's latents in place of those of the block before it."""

    def __init__(self, blocks: Iterable[torch.nn.Module], stream: list[torch.Tensor]) -> None:
        self.on = False
        self.stream = stream
        for index, block in enumerate(blocks):
            block.register_forward_pre_hook(partial(self._force, index), with_kwargs=True)

    def _force(self, index: int, block: torch.nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if not self.on:
            return args, kwargs
        latents = self.stream[index].float()
        return ((latents, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": latents})


def share(missed: torch.Tensor, wanted: torch.Tensor, floor: float = 1e-6) -> torch.Tensor:
    return missed.square().mean() / (wanted.square().mean() + floor)


def missed_hints(seen: list[torch.Tensor], stream: list[torch.Tensor], forced: bool) -> torch.Tensor:
    """Mean over the blocks of the share that they miss of what the teacher has there, and of how this differs between
    the captions of a pair. Where forced, of what they add to it."""
    missed = []
    for ours, (before, after) in zip(seen, pairwise(stream), strict=True):
        error, wanted = ours.float() - after.float(), after.float() - (before.float() if forced else 0.0)
        first, second = error.chunk(2)
        one, other = wanted.chunk(2)
        missed.append(share(error, wanted) + share(first - second, one - other))
    return torch.stack(missed).mean()


def missed_difference(answer: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """How much is missed of what tells the captions of a pair apart, [B, ...] with a pair's second half behind."""
    (first, second), (one, other) = answer.chunk(2), target.chunk(2)
    dims = tuple(range(1, answer.dim()))
    wanted = (one - other).square().mean(dims)
    return (((first - second) - (one - other)).square().mean(dims) / (wanted + DIFFERENCE_FLOOR)).mean()


def shifted(uniform: torch.Tensor, shift: float) -> torch.Tensor:
    return shift * uniform / (1 + (shift - 1) * uniform)


def hunyuan_loss(
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


def cogvideox_loss(
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
        temporal_size=5,
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
    parser.add_argument("--init", type=Path, help="folder of an earlier training to start from")
    parser.add_argument(
        "--latents", type=Path, default=Path("training/runs/transformer-4"), help="folder of train_transformer.py"
    )
    parser.add_argument("--clip-seed", type=int, default=1000, help="that the clips of the latents were drawn with")
    parser.add_argument("--num-steps", type=int, default=2500)
    parser.add_argument(
        "--hint-steps", type=int, help="in which each block learns from the teacher's; 1000, and with --init none"
    )
    parser.add_argument("--forced-steps", type=int, default=200, help="in which each block gets the teacher's latents")
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


def build_student(
    model: str, init: Path | None, teacher: Path, text: torch.Tensor, teacher_text: torch.Tensor
) -> torch.nn.Module:
    """The denoiser with its first weights: of an earlier training in the folder `init`, else of the teacher's in the
    folder `teacher`, where the captions' tokens tell what each of them makes of text."""
    student = STUDENTS[model]
    if init:
        return student.transformer_class.from_pretrained(init / "transformer")
    transformer = student.transformer_class(**student.transformer)
    start = WanTransformer3DModel.from_pretrained(teacher, torch_dtype=torch.float32)
    some = torch.randperm(len(text) - 1, generator=torch.Generator().manual_seed(0))[:NUM_FITTED]
    rows = torch.cat([some, torch.full((NUM_FITTED // 10,), len(text) - 1)])  # those without a caption count too
    with torch.no_grad():
        theirs = start.condition_embedder.text_embedder(teacher_text[rows].float())
    words = Words(text[rows].flatten(0, 1), theirs.flatten(0, 1))
    copy_teacher(transformer, start, STRETCHES[model], teacher_sigmas(model), words)
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

    transformer = build_student(
        args.model, args.init, teacher_folder / "transformer", text["text_encoder"].cpu(), teacher_text.cpu()
    )
    transformer.to(device).train()
    print(f"transformer: {sum(p.numel() for p in transformer.parameters())} weights", flush=True)
    avoid_fused_attention(device)
    blocks = [*transformer.transformer_blocks, *getattr(transformer, "single_transformer_blocks", ())]
    stream, seen = watch_teacher(teacher, STRETCHES[args.model]), watch(blocks)
    forcing = Forcing(blocks, stream)
    answers = (hunyuan_loss if hunyuan else cogvideox_loss)(transformer, velocity, text, masks, shift)
    weights = torch.tensor([sampling_weight(caption, args.pair_weight) for caption in captions])
    half = args.batch // 2

    def loss_at(step: int) -> torch.Tensor:
        rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows, others = torch.multinomial(weights, 2 * half, replacement=True, generator=rng).chunk(2)
        x0 = torch.from_numpy(latents[rows.numpy()]).float().to(device)
        noise = torch.randn(x0.shape, generator=rng).to(device)
        uniform = (torch.arange(half) + torch.rand(half, generator=rng)) / half
        told = (torch.rand(half, generator=rng) < OTHER_CAPTION) & (uniform > OTHER_CAPTION_FROM)
        rows = torch.cat([rows, torch.where(told, others, len(captions))]).to(device)
        low, high = GUIDANCE
        guidance = (low + (high - low) * torch.rand(half, generator=rng)).to(device).repeat(2)
        forcing.on, hinted = step < args.forced_steps, step < args.hint_steps
        x0, noise, uniform = x0.repeat(2, 1, 1, 1, 1), noise.repeat(2, 1, 1, 1, 1), uniform.to(device).repeat(2)
        answer, target = answers(x0, noise, uniform, rows, None if hinted else guidance)
        loss = (answer - target).square().mean() + DIFFERENCE_WEIGHT * missed_difference(answer, target)
        if hinted:
            loss = loss + (1 - step / args.hint_steps) * missed_hints(seen, stream, forcing.on)
        seen.clear()
        stream.clear()
        return loss

    config = LoopConfig(
        num_steps=args.num_steps, learning_rate=1.5e-3, muon_learning_rate=args.muon_learning_rate, ema_decay=0.998
    )
    model = torch.nn.ModuleDict({"transformer": transformer})
    model.load_state_dict(train(model, loss_at, config, args.out / "transformer.pt", device, ADAM_ONLY))
    transformer.save_pretrained(args.out / "transformer")


if __name__ == "__main__":
    main()
