"""Small cohorts with a signal: several volumes a patient, made here."""

import signal
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from vitreous.recipes.feature_set import FeatureSet

MakeRows = Callable[..., FeatureSet]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and threads that wait for a busy core lose seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def make_rows() -> MakeRows:
    """Builds a feature set; the class centres are the same for every split."""

    def build(
        split: str,
        num_patients: int,
        *,
        width: int = 12,
        num_classes: int = 3,
        signal: float = 1.0,
        seed: int = 0,
    ) -> FeatureSet:
        rng = np.random.default_rng([seed, len(split), num_patients])
        centre_CD = np.random.default_rng(99).normal(size=(num_classes, width))
        y_P = np.arange(num_patients) % num_classes
        volumes_P = rng.integers(1, 4, num_patients)
        owner_N = rng.permutation(np.repeat(np.arange(num_patients), volumes_P))
        noise_ND = rng.normal(size=(len(owner_N), width)) + rng.normal(size=(num_patients, width))[owner_N]
        features_ND = 3.0 + 2.0 * (signal * centre_CD[y_P[owner_N]] + noise_ND)
        return FeatureSet(
            features_ND.astype(np.float32),
            y_P[owner_N],
            np.array([f"{split}-{patient:04d}" for patient in owner_N]),
            1.0 / volumes_P[owner_N],
        )

    return build


@pytest.fixture
def interruptible() -> Iterator[None]:
    """SIGINT raises, as in a terminal; a test run in the background is started with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
