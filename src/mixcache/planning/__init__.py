"""Schedules from a profile: what is known of a model, read at the noise levels of a run, and the search."""
