"""UPerNet: pooled context on the coarsest map, a pyramid network above it, all maps fused and classified.

Source: "Unified Perceptual Parsing for Scene Understanding", Xiao et al., ECCV 2018; the decoder is that of
segmentation_models_pytorch.
"""

# Shapes: B batch, O classes, Y X map

from collections.abc import Sequence

from torch import Tensor, nn

DROPOUT = 0.1


class UPerNet(nn.Module):
    """Logits at the finest map of a pyramid of four."""

    def __init__(self, in_channels: Sequence[int], num_classes: int, *, channels: int) -> None:
        """The published sizes have 512 `channels`."""
        from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

        super().__init__()
        self.decoder = UPerNetDecoder(
            [0, 0, *in_channels], encoder_depth=len(in_channels) + 1, decoder_channels=channels
        )
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """(B, O, Y, X)."""
        finer = [maps[0], maps[0]]  # maps finer than the pyramid's, which the decoder passes over
        logits_BOYX: Tensor = self.classifier(self.dropout(self.decoder([*finer, *maps])))
        return logits_BOYX
