"""Grain, imported without its warning that jax, which it can do without, is missing."""

import logging

logging.getLogger("absl").setLevel(logging.ERROR)
import grain

__all__ = ["grain"]
