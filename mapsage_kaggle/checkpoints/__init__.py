"""Finding, judging, choosing and keeping checkpoint files."""
