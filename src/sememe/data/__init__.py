"""Datasets: manifests, reading, pairing, captions, cached latents.

Only `sememe.data.array_cache` imports torch.
"""
