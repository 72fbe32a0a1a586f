"""Curation: datasets made of other data, by a trained model where one is needed."""
