"""Three dimensions: shapes as point clouds, beside images and words."""
