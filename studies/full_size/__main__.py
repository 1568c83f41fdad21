"""What a cache costs and saves on models of full size, with random weights; quality is not measured.

    python -m studies.full_size --models wan-1.3b-480p,cogvideox-5b --out docs/results

For each model and each mode, plain and cached generations take turns; every finished mode is kept in gpu-<model>.json,
and is not measured again. gpu.md is written from all such files in the folder. --tiny tries it all out on a CPU.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from mixcache.config import unknown_name
from studies.full_size.measure import Options, measure
from studies.full_size.models import MODELS, FullSizeModel, tiny
from studies.full_size.modes import MODES
from studies.full_size.page import write_page
from studies.full_size.schedules import recorded

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
SCHEDULE_FILE = "gpu-schedule.jsonl"
INTERRUPTED = 130


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.full_size",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    yes_or_no = argparse.BooleanOptionalAction
    parser.add_argument("--models", default=",".join(MODELS), help="names with commas (default: %(default)s)")
    parser.add_argument("--modes", default=",".join(MODES), help="names with commas (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"))
    parser.add_argument("--steps", type=int, help="denoising steps (default: the model's own, few where they are slow)")
    parser.add_argument(
        "--repeats", type=int, default=2, help="runs of each, in turn: plain, cached, cached, plain (default: 2)"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=DTYPES, help="default: bfloat16, on a CPU float32")
    parser.add_argument("--eager", action=yes_or_no, default=True, help="measure without torch.compile")
    parser.add_argument("--compile", action=yes_or_no, default=True, help="measure with compiled blocks")
    parser.add_argument("--compile-backend", default="inductor")
    parser.add_argument("--schedule", type=Path, help=f"a trace to carry over (default: {SCHEDULE_FILE} in --out)")
    parser.add_argument("--retry-failed", action="store_true", help="measure modes again that failed")
    parser.add_argument("--tiny", action="store_true", help="the same models made tiny, to try the benchmark out")
    args = parser.parse_args(argv)
    for name, value in (("--steps", args.steps), ("--repeats", args.repeats)):
        if value is not None and value < 1:
            parser.error(f"{name} {value} must be at least 1")
    for kind, names, known in (("model", args.models, MODELS), ("mode", args.modes, MODES)):
        for name in names.split(","):
            if name not in known:
                parser.error(unknown_name(kind, name, known))
    try:
        torch.empty(0, device=args.device)
    except (RuntimeError, AssertionError) as error:  # an unknown word, or a device that this torch was built without
        parser.error(f"--device {args.device} cannot be used: {str(error).splitlines()[0]}")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, writes the page, and returns the exit status."""
    args, console = parsed(argv), Console(highlight=False, soft_wrap=True)
    device = torch.device(args.device)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        trace = recorded(args.schedule, args.out / SCHEDULE_FILE)
    except (OSError, ValueError) as error:
        console.print(str(error), markup=False)
        return 2
    options = Options(
        out=args.out,
        trace=trace,
        device=device,
        dtype=DTYPES[args.dtype or ("float32" if device.type == "cpu" else "bfloat16")],
        num_steps=args.steps,
        repeats=args.repeats,
        phases=[phase for phase, wanted in (("eager", args.eager), ("compiled", args.compile)) if wanted],
        modes=args.modes.split(","),
        backend=args.compile_backend,
        retries_failed=args.retry_failed,
    )
    models = [MODELS[name] for name in args.models.split(",")]
    status = _measured([tiny(model) for model in models] if args.tiny else models, options, console)
    console.print(f"written: {write_page(args.out)}", markup=False)
    return status


def _measured(models: Sequence[FullSizeModel], options: Options, console: Console) -> int:
    """Measures the models; an interruption keeps what is finished."""
    status = 0
    for model in models:
        try:
            measure(model, options, lambda line: console.print(line, markup=False))
        except ValueError as error:
            console.print(str(error), markup=False)
            status = 2
        except KeyboardInterrupt:
            console.print("interrupted: what is finished is kept")
            return INTERRUPTED
    return status


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    sys.exit(main())
