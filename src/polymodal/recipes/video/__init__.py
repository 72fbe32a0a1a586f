"""Methods for moving images."""
