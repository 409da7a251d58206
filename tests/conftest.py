"""Every test checks the shapes of every public signature; torch uses one thread a worker."""

from jaxtyping import install_import_hook

install_import_hook("paretune", "beartype.beartype")

import torch  # noqa: E402

torch.set_num_threads(1)
