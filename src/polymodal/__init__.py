"""Pre-train any modality with any published method, and know which one works on your data."""
