"""Benchmarks: ratios of two things measured in one run on an idle machine."""
