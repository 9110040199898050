"""Datasets: manifests, reading, pairing, captions, cached latents.

Only `sememe.data.latents` imports torch.
"""
