"""Questions with known answers: those of a user's own files (questions.py) and published benchmarks (benchmark.py)."""
