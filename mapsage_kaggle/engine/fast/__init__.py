"""Faster replacements for mmsegmentation's parts, with the same results."""
