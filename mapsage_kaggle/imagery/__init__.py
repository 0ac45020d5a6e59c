"""Pictures that a model is shown and maps that come of it: read, cut into windows, written, checked."""
