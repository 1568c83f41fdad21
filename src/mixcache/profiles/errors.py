"""What is raised of profiles."""

from __future__ import annotations


class ProfileError(ValueError):
    """A file that is no profile, or a profile of something else; the message says what to do."""
