"""Writes the measured figures of docs/results into the README, between its two markers.

python -m mixcache.bench.readme
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from mixcache.report.markdown import table

BEGIN, END = "<!-- measured:begin -->", "<!-- measured:end -->"
COLUMNS = {
    "method": "method",
    "speedup": "speed-up",
    "ideal": "ideal",
    "of_ideal": "of ideal",
    "psnr_db": "PSNR (dB)",
    "margin_db": "over fewer steps (dB)",
    "ssim": "SSIM",
    "adherence": "caption right",
    "cache_kib": "cache (KiB)",
}


def measured(results: Path) -> str:
    """The section's text, from quick-50.json and overhead.json in `results`."""
    quick = json.loads((results / "quick-50.json").read_text())
    overhead = json.loads((results / "overhead.json").read_text())
    arguments, versions, machine = quick["arguments"], quick["versions"], quick["machine"]
    rows = [{label: row[name] for name, label in COLUMNS.items()} for row in quick["summary"]]
    num_prompts = len({record["prompt"] for record in quick["records"]})
    lines = [
        f"`make bench-quick`: `shapes-wan`, {num_prompts} held-out captions, {arguments['num_inference_steps']} steps,",
        f"guidance {arguments['guidance_scale']:g}, {quick['scheduler']}; {machine['threads']} CPU threads,",
        f"torch {versions['torch']}, diffusers {versions['diffusers']}. Wall-clock of the denoising loop; PSNR, SSIM",
        "against the plain clip of the same seed. All rows are of one run.",
        "",
        table(rows),
        "",
        overhead_line(overhead),
    ]
    return "\n".join(lines)


def overhead_line(overhead: dict[str, Any]) -> str:
    """One sentence on what the attachment itself costs."""
    attached, noise = overhead["always_compute over plain"], overhead["plain over plain"]
    return (
        f"`{overhead['command']}`: attached with `always_compute` the loop takes "
        f"{attached['median'] - 1:+.1%} (median of "
        f"{len(attached['pairs'])} interleaved pairs; the plain pipeline against itself: {noise['median'] - 1:+.1%})."
    )


def filled(readme: str, section: str) -> str:
    """`readme` with the section between the markers; ValueError where a marker is missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n{section}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--results", type=Path, default=Path("docs/results"))
    args = parser.parse_args()
    args.readme.write_text(filled(args.readme.read_text(), measured(args.results)))


if __name__ == "__main__":
    main()
