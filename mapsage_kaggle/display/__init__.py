"""Rendering for people: terminal, notebook and report. It decides nothing."""
