"""Preference optimization: methods that learn from pairs of answers, of which one is better."""
