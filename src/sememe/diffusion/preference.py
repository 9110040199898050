"""Learning which of two predictions is to be preferred, from their errors."""

import torch.nn.functional as F

from sememe.diffusion.objectives import PerSample


def preference_losses(margins: PerSample, strength: float) -> PerSample:
    """The negative logarithm of the probability that the better one is preferred, by a logistic model.

    It is the loss of Diffusion-DPO (arXiv 2311.12908, equation 14), with equal weights of all levels of noise, which is
    also the form for flow matching (arXiv 2501.13918, section 4). There a margin compares gains, and a gain is by how
    much the error of the trained network is below that of the frozen one.

    Args:
        margins: By how much the preferred one is better, in mean squared errors of latents.
        strength: Factor of the margins; the larger it is, the smaller is the difference that is learned.
    """
    return -F.logsigmoid(strength * margins)
