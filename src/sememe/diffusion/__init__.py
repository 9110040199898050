"""The mathematics of generation: objectives, guidance, and the one denoising loop."""
