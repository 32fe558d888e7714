"""Local attention on a GPU, forward and backward: unfolded, by tiles, by FlexAttention, and by the Triton kernels.

    python -m benchmarks.cuda [--rounds 20] [--batch 32] [--only 64@56]

A row is channels @ map side, as in the stages of a ResNet-50 at 224 px (64@32 is a stage for small images), window 7,
4 heads, stride 1, float32 (multiplied as float32, not tf32) and bfloat16. The forms take turns within one process;
figures are medians. The table also goes to benchmarks/results/cuda-<device>.md. Without a GPU it says so and ends.
"""

import argparse
import re
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from acmix.ops._geometry import Axis
from acmix.ops._tile_form import tile_form
from acmix.ops.local_attention import reference_local_attention
from acmix.ops.triton_local_attention import triton_local_attention

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

ROWS = {"64@56": (64, 56), "128@28": (128, 28), "256@14": (256, 14), "512@7": (512, 7), "64@32": (64, 32)}
DTYPES = (torch.float32, torch.bfloat16)
HEADS = 4
WINDOW = 7
WARM_UPS = 3
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--only", choices=sorted(ROWS))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no CUDA device here, so nothing was timed.")
        return
    device = torch.cuda.get_device_name()
    lines = [
        f"# Local attention on {device}",
        "",
        f"`python -m benchmarks.cuda`, torch {torch.__version__}: forward and backward in ms, batch {arguments.batch}, "
        f"medians of {arguments.rounds}.",
        "",
        "| row | dtype | unfold | tile | FlexAttention | Triton | largest difference of Triton from unfold |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in [arguments.only] if arguments.only else ROWS:
        lines += [measured(row, dtype, arguments.batch, arguments.rounds) for dtype in DTYPES]
    print("\n".join(lines))
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    (RESULTS / f"cuda-{name}.md").write_text("\n".join(lines) + "\n")


def measured(row: str, dtype: torch.dtype, batch: int, rounds: int) -> str:
    """One row of the table."""
    channels, side = ROWS[row]
    shape = (batch, HEADS, channels // HEADS, side, side)
    inputs = [torch.randn(shape, dtype=dtype, device="cuda", requires_grad=True) for _ in range(3)]
    forms: dict[str, Attend] = {
        "unfold": lambda q, k, v: reference_local_attention(q, k, v, window=WINDOW),
        "tile": lambda q, k, v: tile_form(q, k, v, window=WINDOW, stride=1, dilation=1),
        "flex": flex_form(side, compiled=True),
        "triton": lambda q, k, v: triton_local_attention(q, k, v, window=WINDOW),
    }
    steps = {name: step(form, inputs) for name, form in forms.items()}
    milliseconds: dict[str, list[float]] = {name: [] for name, each in steps.items() if warmed_up(each)}
    for _ in range(rounds):
        for name, column in milliseconds.items():
            column.append(timed(steps[name]))
    cells = [f"{statistics.median(milliseconds[name]):.3f}" if name in milliseconds else "fails" for name in forms]
    with torch.no_grad():
        apart = (forms["triton"](*inputs) - forms["unfold"](*inputs)).abs().max().item()
    return " | ".join([f"| {row}", str(dtype).removeprefix("torch."), *cells, f"{apart:.1e} |"])


def flex_form(side: int, *, compiled: bool) -> Attend:
    """FlexAttention over all positions of the map, the repeats of each key as a term of its logits."""
    log_repeats_YH = Axis(side, WINDOW, 1, 1).multiplicity().log().float()
    log_repeats_YH = log_repeats_YH.cuda() if compiled else log_repeats_YH
    reach = WINDOW // 2

    def with_repeats(score: Tensor, _b: Tensor, _n: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return score + log_repeats_YH[q // side, k // side] + log_repeats_YH[q % side, k % side]

    def within_reach(_b: Tensor, _n: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return ((q // side - k // side).abs() <= reach) & ((q % side - k % side).abs() <= reach)

    mask = create_block_mask(within_reach, None, None, side**2, side**2, device=log_repeats_YH.device)
    attend = torch.compile(flex_attention, dynamic=False) if compiled else flex_attention

    def form(q_BNDYX: Tensor, k_BNDHW: Tensor, v_BNDHW: Tensor) -> Tensor:
        q_BNPD, k_BNPD, v_BNPD = (each.flatten(3).mT.contiguous() for each in (q_BNDYX, k_BNDHW, v_BNDHW))
        out_BNPD = attend(q_BNPD, k_BNPD, v_BNPD, score_mod=with_repeats, block_mask=mask)
        out_BNDYX: Tensor = out_BNPD.mT.unflatten(3, (side, side))
        return out_BNDYX

    return form


def step(form: Attend, inputs: list[Tensor]) -> Callable[[], None]:
    """Forward and backward."""

    def run() -> None:
        torch.autograd.backward(form(*inputs).sum(), inputs=inputs)
        for each in inputs:
            each.grad = None

    return run


def warmed_up(run: Callable[[], None]) -> bool:
    """Whether it runs at all: some forms need more memory than a device has."""
    try:
        for _ in range(WARM_UPS):
            run()
        torch.cuda.synchronize()
    except Exception as error:  # whatever it is, the other forms are measured
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}")
        return False
    return True


def timed(run: Callable[[], None]) -> float:
    """Milliseconds on the device."""
    began, ended = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended))


if __name__ == "__main__":
    main()
