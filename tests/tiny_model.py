"""Model folders with a tiny network of random weights, as `pathline train` would write them."""

import torch

from pathline.learn.checkpoint import save_model
from pathline.nets import DiT


def tiny_model(folder, *, conditional=True, seed=0, **config):
    """Write a folder; `seed` decides the weights and `config` adds to the configuration."""
    table = {"channels": 3, "size": 8, "patch": 4, "width": 16, "depth": 1, "heads": 2}
    table["context_width"] = 384 if conditional else None
    network = DiT(**table)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=generator)
    return save_model(
        folder,
        network.state_dict(),
        {
            "name": "tiny",
            "network": {"class": "DiT", **table},
            "path": {"name": "cond_ot"},
            "view": "velocity",
            "label": 1.0,
            "condition": "text" if conditional else None,
            "shape": [3, 8, 8],
            **config,
        },
    )
