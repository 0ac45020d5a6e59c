"""The notebook's side: what its cells call."""
