"""Random generators of single steps: a resumed run draws what an uninterrupted one would have drawn."""

import hashlib

import torch


def derive_seed(*parts: int | str) -> int:
    """A seed between 0 and 2**63 - 1 that depends on all parts and on their order, the same on every machine."""
    digest = hashlib.sha256("/".join(f"{type(part).__name__}:{part}" for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def step_generator(
    seed: int, step: int, rank: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator of one purpose ("batch", "loss") at one step of one rank."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, step, rank, purpose))
