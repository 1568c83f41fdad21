"""Writes the model card and the figures beside the weights, from what the trainings and the evaluation left in their
files.

python training/card.py --hardware "2 CPU cores"
python training/card.py --model shapes-hunyuan --hardware "one CPU core"
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mixcache.zoo import call_defaults

FIGURES = """## Figures

`training/evaluate.py`: {num_captions} held-out captions, 50 steps, guidance {guidance:g}, seeds not used in training,
read from the clips by `studies.captions`, which is right on at least 99 % of drawn clips (a test).

| | |
|---|---|
| colour right | {colour:.1%} |
| motion right | {motion:.1%} |
| shape right | {shape:.1%} |
| background right | {background:.1%} |
| difficulty: PSNR of 25 against 50 steps, {num_difficulty} captions | {psnr_25_against_50_steps_db:.1f} dB |
"""
"""In every card: what `evaluate.py` found."""

CARD = """# shapes-wan

A small text-to-video model of drawn shapes, real in every part: `WanPipeline.from_pretrained` of diffusers loads this
folder without mixcache. It exists so that caching can be shown, tested and measured anywhere.

## Data

Clips drawn by training/drawing.py: one or two of four shapes in six colours and two sizes, seven motions, on plain,
gradient or chequered backgrounds in three tones, anti-aliased, 17 frames of 96x96 pixels, with a caption from its
grammar. A tenth of all captions, chosen by their SHA-256, is held out of every training.

## Architecture

| part | class | weights |
|---|---|---|
| denoiser | WanTransformer3DModel, 12 blocks of width 160, patch (1,2,2), 180 tokens | {transformer:.2f} M |
| autoencoder | AutoencoderKLWan, 8x8 in space and 4x in time, 20 channels | {vae:.2f} M |
| text encoder | UMT5EncoderModel, 2 layers of width 128, trained on captions alone | {text_encoder:.2f} M |
| tokenizer | one token a word of the grammar | |
| scheduler | UniPCMultistepScheduler, flow prediction, shift 20 | |

All weights together: {mib:.2f} MiB in bfloat16. Call it with `max_sequence_length=24`, as it was trained: the
pipeline's default of 512 padded tokens is slower, and not what it was trained on.
`mixcache.zoo.call_defaults()` has all arguments.

## Training

`training/train_vae.py` ({vae_frames_steps} steps on frames, {vae_clips_steps} on clips, {vae_decoder_steps} of the
decoder alone, all of 64x64 pixels, and {vae_full_size_steps} of the decoder on 96x96; {vae_minutes:.0f} minutes), then
`training/train_transformer.py`, each training from the weights of the one before:

{trainings}

In the last one the text encoder of `training/train_text_encoder.py` took the place of the one trained along before,
and stayed as it was. On {hardware}, shared with other work. Flow matching with Muon and AdamW, caption dropout 0.1,
EMA {ema}. Last logged loss {loss:.3f}.

{figures}
| autoencoder: PSNR of held-out clips, `training/train_vae.py` | {vae_psnr:.1f} dB (lowest {vae_lowest:.1f}) |
| seconds for a clip of 50 steps, whole call | {seconds:.1f} |

## Limits

It knows this world and these words only; another word is `<unk>`. Clips longer or larger than it was trained on are
drawn, and are worse. Fine texture is soft, from the autoencoder.
"""

STUDENT_CARD = """# {model}

A small text-to-video model of drawn shapes, real in every part: `{pipeline}.from_pretrained` of diffusers
loads this folder without mixcache. It exists so that caching can be shown, tested and measured anywhere, on an
architecture that {differs}.

It knows the same world as [shapes-wan](../shapes-wan/README.md), shares that model's latents, and learnt from its
denoiser.

## Architecture

| part | class | weights |
|---|---|---|
{parts}
| tokenizer | one token a word of the grammar | |
| scheduler | {scheduler} | |

All weights together: {mib:.2f} MiB in bfloat16. `mixcache.zoo.call_defaults("{model}")` has the arguments
of the call that it was trained for.

## Training

`training/distil_vae.py` ({frames[step]} steps on frames, {clips[step]} on clips; {vae_minutes:.0f} minutes), the text
encoders by `training/train_text_encoder.py`, and `training/distil_transformer.py` ({denoiser[step]} steps of 8 clips,
each under two captions; {minutes:.0f} minutes; last logged loss {denoiser[loss]:.3f}), on {hardware}, shared with other
work. The denoiser began with its teacher's weights where they have a counterpart, and in its first steps each of its
blocks was held to the teacher's block in its place (`training/README.md` has the commands).
A tenth of all captions, chosen by their SHA-256, is held out of every training.

{figures}
| autoencoder: held-out clips, from its own latents | {held_out_psnr_db:.1f} dB (lowest {held_out_psnr_db_lowest:.1f}) |
| autoencoder: the same, from the shared latents | {from_shared_latents_psnr_db:.1f} dB |
| autoencoder: lowest of them | {from_shared_latents_psnr_db_lowest:.1f} dB |
| seconds for a clip of 50 steps, whole call | {seconds:.1f} |

## Limits

Those of its teacher, and its own share on top: it knows this world and these words only, and clips longer or larger
than 17 frames of 96x96 are worse.
"""
DIFFERS = {
    "shapes-hunyuan": "embeds guidance: one call a step, so that there is no unconditional branch to cache",
    "shapes-cogvideox": "has both branches of guidance in one joined batch, and predicts v",
}

TRAININGS = {
    "transformer-64": ("64x64", 32, "0", ""),
    "transformer": ("96x96", 16, "0", "clips of two objects weighted after step 3,500"),
    "transformer-2": ("96x96", 16, "7", "two objects and spinning ones weighted, which then all turned one way"),
    "transformer-3": ("96x96", 16, "not recorded", "sigma shift 8, two objects weighted 5"),
    "transformer-4": ("96x96", 16, "11", "sigma shift 6"),
}
"""Folders of the denoiser's trainings: size of the clips, batch, seed, what was done otherwise."""
STAGES = ("frames", "clips", "decoder", "full-size")


def last_row(path: Path) -> dict[str, float]:
    """The last line of a training's log."""
    return json.loads(path.read_text().splitlines()[-1])


def trainings_table(runs: Path, logs: Mapping[str, Mapping[str, float]]) -> Iterator[str]:
    """Lines of a table with one row a training of the denoiser."""
    yield "| steps | clips of | out of | a batch | minutes | seed | |"
    yield "|---|---|---|---|---|---|---|"
    for name, (size, batch, seed, remark) in TRAININGS.items():
        num_clips, log = int((runs / name / "latents.done").read_text()), logs[name]
        yield f"| {log['step']} | {size} | {num_clips} | {batch} | {log['seconds'] / 60:.0f} | {seed} | {remark} |"


def weights_of(folder: Path) -> int:
    """Bytes of a part's weights."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def figures_of(model: str, evaluation: Mapping[str, Any]) -> str:
    """What `evaluate.py` found, as the first rows of a table."""
    return FIGURES.format(guidance=call_defaults(model)["guidance_scale"], **evaluation).strip()


def wan_card(runs: Path, out: Path, hardware: str) -> tuple[str, dict[str, Any]]:
    """The card of `shapes-wan`, and its figures."""
    evaluation = json.loads((runs / "evaluation.json").read_text())
    vae = json.loads((runs / "vae" / "figures.json").read_text())
    stages = {name: last_row(runs / "vae" / f"{name}.log.jsonl") for name in STAGES}
    logs = {name: last_row(runs / name / "checkpoint.log.jsonl") for name in TRAININGS}
    num_bytes = {part: weights_of(out / part) for part in ("transformer", "vae", "text_encoder")}
    card = CARD.format(
        **{part: size / 2 / 1e6 for part, size in num_bytes.items()},
        mib=sum(num_bytes.values()) / 2**20,
        **{f"vae_{name.replace('-', '_')}_steps": row["step"] for name, row in stages.items()},
        vae_minutes=sum(row["seconds"] for row in stages.values()) / 60,
        trainings="\n".join(trainings_table(runs, logs)),
        loss=list(logs.values())[-1]["loss"],
        ema=0.998,
        hardware=hardware,
        vae_psnr=vae["held_out_psnr_db"],
        vae_lowest=vae["held_out_psnr_db_lowest"],
        seconds=evaluation["seconds_per_clip_50_steps"],
        figures=figures_of("shapes-wan", evaluation),
    )
    return card, {"evaluation": evaluation, "autoencoder": vae}


def student_card(model: str, runs: Path, out: Path, hardware: str) -> tuple[str, dict[str, Any]]:
    """The card of a model that learnt from `shapes-wan`, and its figures."""
    runs = runs / model
    index = json.loads((out / "model_index.json").read_text())
    num_bytes = {name: size for name in index if (size := weights_of(out / name))}
    evaluation = json.loads((runs / "evaluation.json").read_text())
    vae = json.loads((runs / "vae-figures.json").read_text())
    logs = {name: last_row(runs / f"{name}.log.jsonl") for name in ("frames", "clips", "transformer")}
    card = STUDENT_CARD.format(
        model=model,
        pipeline=index["_class_name"],
        scheduler=index["scheduler"][1],
        differs=DIFFERS[model],
        parts="\n".join(f"| {name} | {index[name][1]} | {size / 2e6:.2f} M |" for name, size in num_bytes.items()),
        mib=sum(num_bytes.values()) / 2**20,
        frames=logs["frames"],
        clips=logs["clips"],
        vae_minutes=(logs["frames"]["seconds"] + logs["clips"]["seconds"]) / 60,
        denoiser=logs["transformer"],
        minutes=logs["transformer"]["seconds"] / 60,
        hardware=hardware,
        figures=figures_of(model, evaluation),
        seconds=evaluation["seconds_per_clip_50_steps"],
        **vae,
    )
    return card, {"evaluation": evaluation, "autoencoder": vae}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("shapes-wan", *DIFFERS), default="shapes-wan")
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument("--out", type=Path, help="folder of the pipeline; src/mixcache/zoo/ and the name unless told")
    parser.add_argument("--hardware", required=True)
    args = parser.parse_args()
    out = args.out or Path("src/mixcache/zoo") / args.model
    if args.model == "shapes-wan":
        card, figures = wan_card(args.runs, out, args.hardware)
    else:
        card, figures = student_card(args.model, args.runs, out, args.hardware)
    (out / "README.md").write_text(card)
    (out / "figures.json").write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
