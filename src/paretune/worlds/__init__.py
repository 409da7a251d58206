"""Built-in worlds: synthetic tasks with known true scores, for demos, tests and comparisons of methods."""
