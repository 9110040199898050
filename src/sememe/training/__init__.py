"""One training loop for every stage of every system.

A *stage* (`sememe.training.stage.Stage`) says what is trained, on what and with which loss; the loop
(`sememe.training.loop.train`) never asks which system it serves. Settings (`sememe.training.config`) import no torch.
"""
