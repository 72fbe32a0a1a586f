"""Sound: speech and what is said in it."""
