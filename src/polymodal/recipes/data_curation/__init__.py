"""Curation: raw documents in, training data out."""
