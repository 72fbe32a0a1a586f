"""Further training of a model that writes, by what is better and what is worse."""
