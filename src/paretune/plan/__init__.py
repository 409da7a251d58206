"""Forecasts of a run on other hardware: memory of each process, seconds of a step, and how they scale."""
