"""Images from noise, under a condition."""
