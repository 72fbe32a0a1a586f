"""Methods for moving pictures."""
