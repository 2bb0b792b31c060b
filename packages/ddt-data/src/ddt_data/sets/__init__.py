"""Real sets from ordinary packages, pinned by their hashes."""
