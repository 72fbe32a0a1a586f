"""Multimodal language models: images among the words of a decoder."""
