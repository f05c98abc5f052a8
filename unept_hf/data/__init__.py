"""Data sets and their preparation for UN-EPT."""
