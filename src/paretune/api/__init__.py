"""The public API: everything that the command line does, from Python. `paretune` exports its names lazily."""
