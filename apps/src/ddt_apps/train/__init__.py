"""The verbs that train: tokenizer, renderer, language model."""
