"""Benchmarks: several methods, seeds and weightings under one budget, compared with intervals."""
