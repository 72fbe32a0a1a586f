"""Three dimensions: shapes as point clouds, beside pictures and words."""
