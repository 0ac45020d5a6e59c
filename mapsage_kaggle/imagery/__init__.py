"""Images and the maps made of them: reading, windows, writing, checking."""
