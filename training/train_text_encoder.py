"""Teaches the text encoder (UMT5EncoderModel) which words of a caption belong together, from captions alone.

    python training/train_text_encoder.py --out training/runs/text

Every token of an object's words has to tell all that the caption says of that object, through a linear layer that is
thrown away afterwards; the words of the background tell the background. A denoiser that looks up "blue" then finds
the blue object's shape and motion there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from train_transformer import TEXT
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from mixcache.zoo import world
from mixcache.zoo.tokenizer import MAX_SEQUENCE_LENGTH, build_tokenizer, tokenized

OBJECT_TABLES = (tuple(world.SIZES), tuple(world.COLOURS), world.SHAPES, tuple(world.MOTIONS))
BACKGROUND_TABLES = (world.PATTERNS, tuple(world.TONES))
TABLES = (*OBJECT_TABLES, *BACKGROUND_TABLES)
UNTOLD = -100
"""The class of what a token need not tell; cross entropy leaves it out."""


def answers(scene: world.Scene, tokenizer: PreTrainedTokenizerFast) -> torch.Tensor:
    """What every token of the caption has to tell: one class per table, [MAX_SEQUENCE_LENGTH, len(TABLES)]."""
    told = torch.full((MAX_SEQUENCE_LENGTH, len(TABLES)), UNTOLD)
    start = 0
    for item in scene.objects:
        length = len(tokenizer(item.words, add_special_tokens=False).input_ids)
        values = (item.size, item.colour, item.shape, item.motion)
        for column, (table, value) in enumerate(zip(OBJECT_TABLES, values, strict=True)):
            told[start : start + length, column] = table.index(value)
        start += length + 1  # "and", or "on" behind the last object
    for column, value in enumerate((scene.pattern, scene.tone), start=len(OBJECT_TABLES)):
        told[start : start + 4, column] = TABLES[column].index(value)  # "a", pattern, tone, "background"
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("training/runs/text"))
    parser.add_argument("--num-captions", type=int, default=20000)
    parser.add_argument("--num-steps", type=int, default=400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    tokenizer = build_tokenizer()
    scenes = world.sample_scenes(args.num_captions, args.seed, held_out=False)
    unseen = world.sample_scenes(500, args.seed, held_out=True)
    encoder = UMT5EncoderModel(UMT5Config(vocab_size=len(tokenizer), **TEXT))
    head = torch.nn.Linear(encoder.config.d_model, sum(len(table) for table in TABLES))

    def tokens_and_answers(scenes: list[world.Scene]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        tokens = tokenized(tokenizer, [scene.caption for scene in scenes])
        told = torch.stack([answers(scene, tokenizer) for scene in scenes])
        return tokens.input_ids, tokens.attention_mask, told

    def logits_of(ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return head(encoder(ids, mask).last_hidden_state).split([len(table) for table in TABLES], dim=-1)

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
    encoder.save_pretrained(args.out / "text_encoder")


if __name__ == "__main__":
    main()
