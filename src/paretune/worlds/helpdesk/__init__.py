"""The help desk: requests, responses of a careless assistant, simulated raters, and a ground-truth scorer."""
