"""Examples to batches: reading, order, augmentation, collation, exact state."""
