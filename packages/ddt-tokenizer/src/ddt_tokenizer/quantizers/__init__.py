"""Quantizers: vectors to ids and back. `quantizer` says what one is, `kinds` lists them."""
