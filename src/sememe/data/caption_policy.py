"""How often captions and references are left out in training. Imports no numpy, so that recipes list at once."""

from sememe.records import Record, Share


class CaptionPolicy(Record):
    """Independent probabilities of dropping a target's caption, a reference's caption, and the reference.

    `full_share` is the probability that a kept caption is the full one, which names the condition.
    """

    drop_target_caption: Share = 0.5
    drop_reference_caption: Share = 0.5
    drop_reference: Share = 0.0
    full_share: Share = 0.0
