"""Datasets: manifests, reading, pairing, captions, cached latents.

Only the modules of array caches import torch.
"""
