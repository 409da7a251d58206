"""Types and functions that every other package may import; imports nothing of paretune itself.

The batch, error classes, masked reductions, random generators, KL estimators and Pareto fronts.
"""
