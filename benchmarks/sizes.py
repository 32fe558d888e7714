"""The table of docs/models.md: parameters and multiply-adds of every backbone, plain and swapped, beside the published.

    python -m benchmarks.sizes > docs/models.md

At 224 px with 1,000 classes and every slot swapped. A figure is within where it lies in the wider of two bounds: a
share of what was published, or half a unit of its last printed digit.
"""

import argparse
from dataclasses import dataclass

from acmix import registry, spec
from acmix.plan import plan

IMAGE_PX = 224
CLASSES = 1000
UNITS = {"M": 1e6, "G": 1e9, "": 1.0}

HEAD = """# Sizes

Parameters and multiply-adds (MACs) of the forward pass of one image of 224 px, 1,000 classes, every slot swapped.
Published are the figures of the ACmix paper; for its ResNets and Swins those of the released code, which are finer.
Attention counts as 2 * window positions * channels a query, a norm as 2 an output element.
`python -m benchmarks.sizes` prints this file.

| backbone | params | published | within | MACs | published | within |
|---|---|---|---|---|---|---|"""


@dataclass(frozen=True)
class Published:
    """A figure as it was printed, and how far from it one may lie."""

    text: str
    share: float = 0.01

    def holds(self, value: int) -> bool:
        digits = self.text.rstrip("MG")
        unit = UNITS[self.text[len(digits) :]]
        decimals = len(digits.partition(".")[2])
        figure = float(digits.replace(",", "")) * unit
        return abs(value - figure) <= max(self.share * figure, 0.5 * unit / 10.0**decimals)


def exact(params: str, macs: str) -> tuple[Published, Published]:
    """Of models whose code was released."""
    return Published(params), Published(macs)


def near(params: str, macs: str, *, macs_share: float) -> tuple[Published, Published]:
    """Of models whose code was not, so that their design is ours."""
    return Published(params, 0.03), Published(macs, macs_share)


PLAIN = {
    "resnet26": exact("13.7M", "2.4G"),
    "resnet38": exact("19.6M", "3.2G"),
    "resnet50": exact("25.6M", "4.1G"),
    "san10": exact("11.8M", "1.9G"),
    "san15": exact("16.2M", "2.6G"),
    "san19": exact("20.5M", "3.3G"),
    "pvt_tiny": exact("13.2M", "1.9G"),
    "pvt_small": exact("24.5M", "3.8G"),
    "swin_tiny": exact("28M", "4.5G"),
    "swin_small": exact("50M", "8.7G"),
}
SWAPPED = {
    "resnet26": exact("10,487,816", "2.230G"),
    "resnet38": exact("14,410,896", "2.877G"),
    "resnet50": exact("18,333,976", "3.525G"),
    "san10": near("12.1M", "1.9G", macs_share=0.10),
    "san15": near("16.6M", "2.7G", macs_share=0.10),
    "san19": near("21.2M", "3.4G", macs_share=0.10),
    "pvt_tiny": near("13M", "2.0G", macs_share=0.15),
    "pvt_small": near("25M", "3.9G", macs_share=0.15),
    "swin_tiny": exact("28,649,908", "4.652G"),
    "swin_small": exact("50,345,080", "9.004G"),
}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(HEAD)
    for name, backbone in registry.entries("backbones").items():
        if not hasattr(backbone, "examples"):  # a family is no model
            show(name)


def show(name: str) -> None:
    """Print the rows of a backbone: plain, and with every slot swapped."""
    job = spec.parse({"backbone": {"name": name}, "swaps": [{"layers": "*"}], "dataset": {"name": "digits"}})
    totals = plan(job, num_classes=CLASSES, image_px=IMAGE_PX)["totals"]
    for what, size, published in (
        (name, totals["before"], PLAIN.get(name)),
        (f"{name}, ACmix", totals["after"], SWAPPED.get(name)),
    ):
        params, macs = published or (None, None)
        cells = [f"{size['params']:,}", *compared(size["params"], params)]
        cells += [f"{size['macs'] / 1e9:.3f}G", *compared(size["macs"], macs)]
        print(f"| {what} | {' | '.join(cells)} |", flush=True)


def compared(value: int, published: Published | None) -> tuple[str, str]:
    """The published figure, and whether the value is within."""
    return ("", "") if published is None else (published.text, "yes" if published.holds(value) else "no")


if __name__ == "__main__":
    main()
