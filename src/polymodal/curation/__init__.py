"""Data that are made of other data, by a trained model where one is needed."""
