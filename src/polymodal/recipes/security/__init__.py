"""Attacks on trained methods, poisoning, and defences."""
