"""The compressor: features of an encoder to a few numbers per token (arXiv 2512.20619, section 3.2).

An MLP gives mean and variance of a Gaussian, which is drawn from in training and kept near a standard one by its KL
divergence. The paper gives neither depth nor width nor activation, nor whether use draws or takes the mean: here two
hidden layers, GELU, and the mean.
"""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor, nn

from sememe.checkpoints.fingerprint import hash_tensors
from sememe.errors import ModelError
from sememe.semanticgen.clocks import SliceClock
from sememe.semanticgen.shapes import EncoderFeatures, PlanFeatures

SomeFeatures = Float[Tensor, "_ _ _ _ feature_dim"]
"""Features of a batch among others, which may be of other sizes."""
PerChannel = Float[Tensor, " semantic_dim"]

_LOG_VARIANCES = (-20.0, 10.0)
_FIRST_LOG_VARIANCE = -4.0  # narrow, so that the means are seen from the first step on
_COLLAPSED = 0.01  # nats per token
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Posterior:
    """Gaussians of compressed features, before they are normalised."""

    mean: PlanFeatures
    log_variance: PlanFeatures

    @property
    def std(self) -> PlanFeatures:
        """Standard deviations."""
        return (0.5 * self.log_variance).exp()

    def sample(self, generator: torch.Generator | None = None) -> PlanFeatures:
        """Draw from the Gaussians; differentiable in their parameters."""
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.std * noise

    def kl(self) -> PlanFeatures:
        """Return the KL divergence from a standard Gaussian of each number, in nats."""
        return 0.5 * (self.mean.square() + self.log_variance.exp() - 1.0 - self.log_variance)

    def kl_loss(self) -> Float[Tensor, ""]:
        """Return the KL divergence of a token, the sum over its numbers; the mean over all tokens."""
        return self.kl().sum(dim=-1).mean()


@dataclass(frozen=True, eq=False)
class ChannelReport:
    """What each channel of compressed features carries.

    Attributes:
        std: Standard deviation of the means over tokens.
        posterior_std: Standard deviation of the Gaussians, the mean over tokens.
        kl: KL divergence in nats, the mean over tokens.
    """

    std: PerChannel
    posterior_std: PerChannel
    kl: PerChannel

    @classmethod
    def of(cls, posterior: Posterior) -> "ChannelReport":
        """Measure the channels of one batch."""
        means, stds, kl = (part.float().flatten(0, -2) for part in (posterior.mean, posterior.std, posterior.kl()))
        return cls(means.std(dim=0, correction=0), stds.mean(dim=0), kl.mean(dim=0))

    @property
    def collapsed(self) -> list[int]:
        """Channels whose Gaussian is the standard one whatever the features are, so that they carry nothing."""
        return self.has_collapsed.nonzero().flatten().tolist()

    @property
    def has_collapsed(self) -> Bool[Tensor, " semantic_dim"]:
        """Whether each channel has collapsed, on the device of the features."""
        return self.kl < _COLLAPSED

    def warn(self) -> None:
        """Log a warning that names the collapsed channels, if there are any."""
        if not self.collapsed:
            return
        stds = ", ".join(f"{self.posterior_std[channel]:.2f}" for channel in self.collapsed)
        _log.warning(
            f"{len(self.collapsed)} of {len(self.kl)} channels of the compressor have collapsed "
            f"({', '.join(map(str, self.collapsed))}; posterior std {stds}); lower the weight of the KL divergence"
        )


class SemanticCompressor(ModelMixin, ConfigMixin):
    """MLP from features to Gaussians of few numbers, with the statistics that give these unit variance.

    Args:
        feature_dim: Numbers per feature of the encoder.
        semantic_dim: Numbers per compressed token; 8 in the paper's main ablation.
        hidden_dim: Width of the hidden layers.
        num_layers: Hidden layers, at least 1.
        fps: Frames per second that the encoder is given.
        frames_per_slice: Frames per slice of the encoder.
        encoder: Fingerprint of the encoder whose features it was trained on; empty before that.
    """

    _supports_gradient_checkpointing = False

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        feature_dim: int,
        semantic_dim: int = 8,
        hidden_dim: int = 512,
        num_layers: int = 2,
        fps: float = 1.6,
        frames_per_slice: int = 2,
        encoder: str = "",
    ) -> None:
        super().__init__()
        widths = [feature_dim, *[hidden_dim] * num_layers]
        hidden = [nn.Sequential(nn.Linear(*pair), nn.GELU()) for pair in pairwise(widths)]
        # Towers leave a few very large numbers in their features.
        self.norm = nn.LayerNorm(feature_dim)
        self.hidden = nn.Sequential(*hidden)
        self.head = nn.Linear(widths[-1], 2 * semantic_dim)
        nn.init.constant_(self.head.bias[semantic_dim:], _FIRST_LOG_VARIANCE)
        self.register_buffer("channel_mean", torch.zeros(semantic_dim))
        self.register_buffer("channel_std", torch.ones(semantic_dim))

    @property
    def clock(self) -> SliceClock:
        """How the encoder divides time."""
        return SliceClock(self.config.fps, self.config.frames_per_slice)

    @property
    def fingerprint(self) -> str:
        """Hash of all that plans depend on: weights, statistics and the encoder."""
        return hash_tensors({"encoder": self.config.encoder}, self.state_dict().items())

    def check_encoder(self, fingerprint: str) -> None:
        """Refuse features of another encoder.

        Raises:
            ModelError: `fingerprint` is not that of the encoder that this was trained on.
        """
        if fingerprint != self.config.encoder:
            raise ModelError(
                f"expected features of the encoder {self.config.encoder[:12] or '(none yet)'} that the compressor was "
                f"trained on, got those of {fingerprint[:12]}; use the encoder of the same model, at the same rate"
            )

    def forward(self, features: EncoderFeatures) -> Posterior:
        """Compress features to Gaussians."""
        mean, log_variance = self.head(self.hidden(self.norm(features.to(self.head.weight.dtype)))).chunk(2, dim=-1)
        return Posterior(mean, log_variance.clamp(*_LOG_VARIANCES))

    @torch.no_grad()
    def encode(self, features: EncoderFeatures, generator: torch.Generator | None = None) -> PlanFeatures:
        """Compress features to those of a plan: means, or draws if a generator is given, normalised; float32."""
        posterior = self(features)
        return self.normalise(posterior.mean if generator is None else posterior.sample(generator)).float()

    def normalise(self, values: PlanFeatures) -> PlanFeatures:
        """Give compressed features zero mean and unit variance per channel."""
        return (values - self.channel_mean) / self.channel_std

    @torch.no_grad()
    def fit_statistics(self, batches: Iterable[SomeFeatures]) -> None:
        """Set the statistics to those of the means of features, once training is over."""
        count = 0
        for features in batches:
            means = self(features).mean
            count += len(means)
            self.update_statistics(means, len(means) / count)

    @torch.no_grad()
    def update_statistics(self, values: PlanFeatures, momentum: float) -> None:
        """Move the statistics towards those of a batch of compressed features that are not normalised.

        Args:
            values: Draws or means.
            momentum: Share of the batch in the new statistics, 0 to 1.
        """
        rows = values.float().flatten(0, -2)
        mean, square = self.channel_mean.float(), self.channel_std.float().square() + self.channel_mean.float().square()
        mean = mean.lerp(rows.mean(dim=0), momentum)
        square = square.lerp(rows.square().mean(dim=0), momentum)
        self.channel_mean.copy_(mean)
        self.channel_std.copy_((square - mean.square()).clamp_min(1e-12).sqrt())
