"""Documents: pages of words in places, forms, tables, screens."""
