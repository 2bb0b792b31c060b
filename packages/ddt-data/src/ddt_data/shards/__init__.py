"""Shard folders: how samples are stored, made, mixed, ordered and checked."""
