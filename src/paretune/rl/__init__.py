"""The reinforcement learning loops: algorithm specs, context and state, hooks, metrics, validation."""
