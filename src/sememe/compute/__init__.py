"""Where weights are kept and how blocks compute: placement, offload, storage, tiling, LoRA, caches."""
