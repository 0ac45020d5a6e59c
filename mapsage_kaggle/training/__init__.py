"""One session from beginning to end: prepare, supervise, fall back, hand over."""
