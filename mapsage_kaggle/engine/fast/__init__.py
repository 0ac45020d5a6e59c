"""Faster parts that stand in for mmsegmentation's own, with the same results."""
