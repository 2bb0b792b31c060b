"""Readers of pictures and words in the layouts that people have: each yields records and what is refused."""
