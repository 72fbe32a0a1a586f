"""Runs and exports in the evaluation packages of others: CLIP_benchmark, MTEB, lmms-eval."""
