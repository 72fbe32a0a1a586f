"""Vision encoders that learn by writing: captions, and images patch by patch."""
