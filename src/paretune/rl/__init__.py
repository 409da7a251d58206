"""The reinforcement learning loop: the algorithm spec, the training state, metrics, throughput and validation."""
