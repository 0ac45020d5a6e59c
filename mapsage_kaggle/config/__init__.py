"""Read a training config, find out what it means, and patch it for a session."""
