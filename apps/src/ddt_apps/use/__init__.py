"""The verbs that use trained models."""
