"""Puts the trained parts together as an ordinary pipeline folder, bf16, that `WanPipeline.from_pretrained` loads.

python training/assemble.py --runs training/runs --out src/mixcache/zoo/shapes-wan
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from transformers import UMT5EncoderModel

from mixcache.zoo.tokenizer import build_tokenizer

FLOW_SHIFT = 20.0
"""Of 3, 5, 8, 12 and 20 the one at which half the steps cost most; captions are shown as well."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("training/runs"))
    parser.add_argument("--trained", default="transformer-4", help="folder in --runs of the last training")
    parser.add_argument("--out", type=Path, default=Path("src/mixcache/zoo/shapes-wan"))
    args = parser.parse_args()
    trained = args.runs / args.trained
    pipeline = WanPipeline(
        tokenizer=build_tokenizer(),
        text_encoder=UMT5EncoderModel.from_pretrained(trained / "text_encoder"),
        transformer=WanTransformer3DModel.from_pretrained(trained / "transformer"),
        vae=AutoencoderKLWan.from_pretrained(args.runs / "vae" / "vae"),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=FLOW_SHIFT, num_train_timesteps=1000
        ),
    )
    pipeline.to(torch.bfloat16)
    pipeline.save_pretrained(args.out)
    for name in ("model_index.json", "tokenizer/tokenizer_config.json"):
        # the name that every transformers release knows the class by
        text = (args.out / name).read_text().replace("TokenizersBackend", "PreTrainedTokenizerFast")
        (args.out / name).write_text(text)
    size = sum(path.stat().st_size for path in args.out.rglob("*.safetensors"))
    print(f"{args.out}: {size / 2**20:.2f} MiB of weights")


if __name__ == "__main__":
    main()
