"""Multimodal language models: pictures among the words of a decoder."""
