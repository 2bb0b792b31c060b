"""The machine: what it has, what a run would take of it, and how fast it is."""
