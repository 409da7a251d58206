"""The help desk: requests, answers of a careless assistant, simulated raters, and a ground-truth scorer."""
