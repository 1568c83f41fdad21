"""Benchmarks: methods side by side on the same prompts, seeds and machine, interleaved, in one run."""
