"""A run: its configuration, its folder, its device, and what happens between steps."""
