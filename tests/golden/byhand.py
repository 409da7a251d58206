"""What the numbers that are worked out by hand are compared with."""

import torch


def near(x, want, tol=1e-6):
    """Every number is as worked out, up to its last digit."""
    torch.testing.assert_close(x.detach().flatten(), torch.tensor(want).flatten(), atol=tol, rtol=0)


def one(x):
    return torch.tensor([float(x)])
