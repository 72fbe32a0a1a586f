"""Metrics: how good is what a model says, ranks or makes."""
