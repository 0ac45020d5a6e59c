"""Find, know and check data sets; no torch here."""
