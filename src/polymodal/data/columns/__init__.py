"""The kinds of columns that recipes declare, one file a kind."""
