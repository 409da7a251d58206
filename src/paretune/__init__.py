"""Align a language model to several objectives at once, and see what each one costs the others."""

__version__ = "0.1.0"
