"""Puts the trained parts together as an ordinary pipeline folder, bf16, that the stock pipeline class loads.

python training/assemble.py --runs training/runs --out src/mixcache/zoo/shapes-wan
python training/assemble.py --model shapes-hunyuan --out src/mixcache/zoo/shapes-hunyuan
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from transformers import CLIPTextModel, LlamaModel, T5EncoderModel, UMT5EncoderModel

from students import COGVIDEOX_SCHEDULER, HUNYUAN_SCHEDULER, STUDENTS
from tokenizer import build_tokenizer

FLOW_SHIFT = 20.0
"""Of 3, 5, 8, 12 and 20 the one at which half the steps cost most; captions are shown as well."""


def wan_pipeline(runs: Path, trained: Path) -> DiffusionPipeline:
    return WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=UMT5EncoderModel.from_pretrained(trained / "text_encoder"),
        transformer=WanTransformer3DModel.from_pretrained(trained / "transformer"),
        vae=AutoencoderKLWan.from_pretrained(runs / "vae" / "vae"),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
        ),
    )


def student_pipeline(model: str, trained: Path) -> DiffusionPipeline:
    student = STUDENTS[model]
    parts = {
        "tokenizer": build_tokenizer(),
        "transformer": student.transformer_class.from_pretrained(trained / "transformer"),
        "vae": student.vae_class.from_pretrained(trained / "vae"),
    }
    if model == "shapes-hunyuan":
        return HunyuanVideoPipeline(
            text_encoder=LlamaModel.from_pretrained(trained / "text_encoder"),
            tokenizer_2=build_tokenizer(),
            text_encoder_2=CLIPTextModel.from_pretrained(trained / "text_encoder_2"),
            scheduler=FlowMatchEulerDiscreteScheduler(**HUNYUAN_SCHEDULER),
            **parts,
        )
    return CogVideoXPipeline(
        text_encoder=T5EncoderModel.from_pretrained(trained / "text_encoder"),
        scheduler=CogVideoXDDIMScheduler(**COGVIDEOX_SCHEDULER),
        **parts,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("shapes-wan", *STUDENTS), default="shapes-wan")
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument(
        "--trained", help="folder in --runs of the last training; transformer-4 for shapes-wan, else the model's name"
    )
    parser.add_argument("--out", type=Path, help="src/mixcache/zoo/ and the model's name unless told")
    args = parser.parse_args()
    out = args.out or Path("src/mixcache/zoo") / args.model
    if args.model == "shapes-wan":
        pipeline = wan_pipeline(args.runs, args.runs / (args.trained or "transformer-4"))
    else:
        pipeline = student_pipeline(args.model, args.runs / (args.trained or args.model))
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(out)
    for path in (out / "model_index.json", *out.glob("tokenizer*/tokenizer_config.json")):
        # the name that every transformers release knows the class by
        path.write_text(path.read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast"))
    size = sum(path.stat().st_size for path in out.rglob("*.safetensors"))
    print(f"{out}: {size / 2**20:.2f} MiB of weights")


if __name__ == "__main__":
    main()
