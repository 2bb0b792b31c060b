"""Scenes with exact truth: what they hold, how they are drawn, and what is said about them."""
