"""Teaches a model's text encoders which words of a caption belong together, from captions alone.

    python training/train_text_encoder.py --out training/runs/text
    python training/train_text_encoder.py --model shapes-hunyuan --out training/runs/shapes-hunyuan

Every token of an object's words has to tell all that the caption says of that object, through a linear layer that is
thrown away afterwards; the words of the background tell the background. A denoiser that looks up "blue" then finds
the blue object's shape and motion there. A token of Llama, which reads from left to right, tells what has been said so
far; CLIP's pooled token tells all of the caption.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import CLIPTextModel, LlamaModel, PreTrainedModel, PreTrainedTokenizerFast

from mixcache.zoo import world
from mixcache.zoo.world import MAX_SEQUENCE_LENGTH

from students import STUDENTS
from text_encoders import build_text_encoders, embeddings
from tokenizer import build_tokenizer, tokenized

OBJECT_TABLES = (tuple(world.SIZES), tuple(world.COLOURS), world.SHAPES, tuple(world.MOTIONS))
BACKGROUND_TABLES = (world.PATTERNS, tuple(world.TONES))
TABLES = (*OBJECT_TABLES, *BACKGROUND_TABLES)
CAPTION_TABLES = (*OBJECT_TABLES, *OBJECT_TABLES, *BACKGROUND_TABLES)
UNTOLD = -100
"""The class of what a token need not tell; cross entropy leaves it out."""


def values_of(item: world.Object) -> tuple[str, ...]:
    """In the order of OBJECT_TABLES, which is that of the words."""
    return item.size, item.colour, item.shape, item.motion


def answers(scene: world.Scene, tokenizer: PreTrainedTokenizerFast, so_far: bool) -> torch.Tensor:
    """What every token of the caption has to tell: one class per table, [MAX_SEQUENCE_LENGTH, len(TABLES)]; with
    `so_far` only from the word on that says it."""
    told = torch.full((MAX_SEQUENCE_LENGTH, len(TABLES)), UNTOLD)
    start = 0
    for item in scene.objects:
        length = len(tokenizer(item.words, add_special_tokens=False).input_ids)
        said_at = (1, 2, 3, length - 1) if so_far else (0, 0, 0, 0)  # "a", size, colour, shape, motion
        for column, (table, value) in enumerate(zip(OBJECT_TABLES, values_of(item), strict=True)):
            told[start + said_at[column] : start + length, column] = table.index(value)
        start += length + 1  # "and", or "on" behind the last object
    for column, value in enumerate((scene.pattern, scene.tone), start=len(OBJECT_TABLES)):
        said_at_word = column - len(OBJECT_TABLES) + 1 if so_far else 0  # "a", pattern, tone, "background"
        told[start + said_at_word : start + 4, column] = TABLES[column].index(value)
    return told


def caption_answers(scene: world.Scene) -> torch.Tensor:
    """What the whole caption says, of its first object, of its second if there is one, and of the background:
    [1, len(CAPTION_TABLES)]."""
    values = [values_of(item) for item in scene.objects] + [(None,) * len(OBJECT_TABLES)]
    said = (*values[0], *values[1], scene.pattern, scene.tone)
    told = [UNTOLD if v is None else table.index(v) for table, v in zip(CAPTION_TABLES, said, strict=True)]
    return torch.tensor([told])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("shapes-wan", *STUDENTS), default="shapes-wan")
    parser.add_argument("--out", type=Path, default=Path("training/runs/text"))
    parser.add_argument("--num-captions", type=int, default=20000)
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    for name, encoder in build_text_encoders(args.model).items():
        print(f"{name}: {sum(p.numel() for p in encoder.parameters())} weights", flush=True)
        teach(encoder, args)
        encoder.save_pretrained(args.out / name)


def teach(encoder: PreTrainedModel, args: argparse.Namespace) -> None:
    """Trains one encoder and shows how much of held-out captions it tells."""
    tokenizer = build_tokenizer()
    scenes = world.sample_scenes(args.num_captions, args.seed, held_out=False)
    unseen = world.sample_scenes(500, args.seed, held_out=True)
    pooled, so_far = isinstance(encoder, CLIPTextModel), isinstance(encoder, LlamaModel)
    sizes = [len(table) for table in (CAPTION_TABLES if pooled else TABLES)]
    head = torch.nn.Linear(encoder.config.hidden_size, sum(sizes))

    def tokens_and_answers(scenes: list[world.Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = tokenized(tokenizer, [scene.caption for scene in scenes])
        told = [caption_answers(scene) if pooled else answers(scene, tokenizer, so_far) for scene in scenes]
        return tokens.input_ids, tokens.attention_mask, torch.stack(told)

    def logits_of(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return head(embeddings(encoder, ids, mask)).split(sizes, dim=-1)

    ids, mask, told = tokens_and_answers(scenes)
    pairs = torch.tensor([len(scene.objects) for scene in scenes]).float()  # two objects are seen twice as often
    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=args.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.learning_rate, total_steps=args.num_steps)
    for step in range(args.num_steps):
        rows = torch.multinomial(pairs, args.batch, replacement=True)
        logits = logits_of(ids[rows], mask[rows])
        losses = [
            torch.nn.functional.cross_entropy(part.flatten(0, 1), told[rows][..., column].flatten())
            for column, part in enumerate(logits)
        ]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            print(step + 1, [round(float(loss.detach()), 4) for loss in losses], flush=True)

    ids, mask, told = tokens_and_answers(unseen)
    with torch.no_grad():
        right = [
            (part.argmax(-1) == told[..., column])[told[..., column] != UNTOLD].float().mean().item()
            for column, part in enumerate(logits_of(ids, mask))
        ]
    print("share right of 500 held-out captions:", [round(share, 4) for share in right])


if __name__ == "__main__":
    main()
