"""Searches the settings of the peers for each hard setting, on captions that do not judge.

    python -m studies.hard_search --settings wan-30 --families teacache spectrum

As `studies.search`: of a peer's grid those settings that nothing of the family beats in speed-up and quality, the
nearest to each of some speed-ups, go into hard_peers.json; quality is the mean PSNR of the decoded clips of some
training captions. A search cut off goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from rich.console import Console
from rich.progress import track

from mixcache.bench.methods import Method
from mixcache.bench.peers import PEERS
from mixcache.store import write_whole
from studies.grids import GRIDS as ALL
from studies.grids import every
from studies.hard import SETTINGS, Trials, decibels_of, speedup_of
from studies.search import best_of, written

CHOSEN = Path(__file__).with_name("hard_peers.json")
"""By hard setting and family."""
GRIDS = {
    "teacache": ALL["teacache"],
    "mag-cache": every(threshold=(0.02, 0.04, 0.06, 0.12, 0.24), max_skip_steps=(2, 3), retention_ratio=(0.1, 0.2)),
    "easycache": ALL["easycache"],
    "sea-cache": every(
        threshold=(0.15, 0.25, 0.4, 0.6, 1.0),
        residual_order=(0,),
        max_consecutive_cached=(0, 2, 3),
        cache_end_steps=(1, 3),
    ),
    "spectrum": every(window=(2, 3), flex=(0.0, 0.25, 0.75, 1.5, 3.0)),
}
"""Of the peers that repeat what was computed, and of Spectrum, which foretells it; all but TeaCache and EasyCache on
coarser grids than in `studies.grids`, to save time. For wan-30 the finer ones of MagCache and Spectrum were searched,
and first-block-cache too. SeaCache was searched for wan-20 alone. Left out are TaylorSeer and
the caches of blocks and of attention."""
WANTED = (1.5, 2.0, 2.5, 3.0)
NUM_PROMPTS = 2
OPTIONS_BELOW = 3
"""Depth of a setting in that file."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--families", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--num-prompts", type=int, default=NUM_PROMPTS)
    parser.add_argument("--work", type=Path, default=Path("build/hard"))
    args = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    for name in args.settings:
        trials = Trials(name, args.num_prompts, is_held_out=False, work=args.work)
        for family in args.families:
            tried = []
            for options in track(GRIDS[family], f"{name} {family}"):
                tried.append((options, found(trials, PEERS[family].make(SETTINGS[name].num_steps, **options))))
            chosen = best_of(tried, WANTED)
            for options, (speedup, decibels) in chosen:
                console.print(f"{name} {family} {options}: {speedup:.2f}x, {decibels:.1f} dB")
            settings = json.loads(CHOSEN.read_text()) if CHOSEN.exists() else {}
            settings.setdefault(name, {})[family] = [options for options, _ in chosen]
            write_whole(CHOSEN, written(settings, OPTIONS_BELOW) + "\n")


def found(trials: Trials, method: Method) -> list[float] | None:
    """Ideal speed-up and mean PSNR; None for a setting that fails, caches nothing or breaks a clip wholly."""
    try:
        values = trials.values(method)
    except Exception as error:  # a peer may fail on a model in any way
        Console(soft_wrap=True).print(f"{method.name}: {type(error).__name__}: {error}")
        return None
    quality = fmean(decibels_of(values))
    return [speedup_of(values), quality] if math.isfinite(quality) else None


if __name__ == "__main__":
    main()
