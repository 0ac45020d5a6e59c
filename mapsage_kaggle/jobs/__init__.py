"""After training: evaluate, predict, export and average, each in a child of its own."""
