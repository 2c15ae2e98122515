"""This project timed beside what people would use instead: `python scripts/benchmark.py`."""
