"""Recipes from the configuration files of TRL 1.16."""
