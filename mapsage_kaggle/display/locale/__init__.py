"""The texts, by language."""
