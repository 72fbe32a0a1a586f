"""Methods whose transformer encodes images and texts, apart and together."""
