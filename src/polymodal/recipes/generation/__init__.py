"""Pictures from noise, under a condition."""
