"""The verbs that make and show shards."""
