"""One thread, no hub, the same examples every time."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before anything imports transformers

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # two spinning OpenMP workers on a shared core are a hundred times slower
settings.register_profile("pathline", derandomize=True, deadline=None)
settings.load_profile("pathline")


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(scope="session")
def k_diffusion():
    """k-diffusion's samplers, where they are installed."""
    from pathline.bench.peers import Absent, k_diffusion_sampling

    try:
        return k_diffusion_sampling()
    except Absent as reason:
        pytest.skip(str(reason))
