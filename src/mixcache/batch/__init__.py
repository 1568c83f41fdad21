"""Many clips: jobs that are data, results that are files, and two thin ways to run them. See docs/batch.md."""
