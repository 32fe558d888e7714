"""What detection and segmentation of digits have in common: the scans, by split, as cut-outs of scenes."""

from functools import cache

import numpy as np

from acmix.datasets._contract import SplitName
from acmix.datasets._scans import digit_scans
from acmix.datasets._scenes import CutOuts
from acmix.datasets._split import cut
from acmix.datasets.digits import TEST_SAMPLES, VAL_SAMPLES

CLASSES = tuple("0123456789")
OPAQUE_INK = 10  # of a scan, of the 16 where it is darkest: from there on it hides what is behind it


@cache
def cut_outs(split: SplitName) -> CutOuts:
    """The scans of the split of that name of the data set `digits`: none is in the scenes of two splits."""
    scans_S88, labels_S = digit_scans()
    indices = dict(zip(("test", "val", "train"), cut(labels_S.tolist(), [TEST_SAMPLES, VAL_SAMPLES]), strict=True))
    chosen = indices[split].numpy()
    opacities = (255 * scans_S88[chosen] / OPAQUE_INK).clip(0, 255).astype(np.uint8)
    return CutOuts(opacities, np.full_like(opacities, 255), labels_S[chosen])
