"""One model that reads and makes several modalities as tokens of one sequence."""
