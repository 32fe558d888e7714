"""Which GPUs a worker offers, and by which names CUDA finds them."""

import logging
from typing import Any

import pytest

from acmix.catalog import Device
from tests.worker.nvml import Nvml, card, divided
from worker import devices
from worker.driver import Driver

TOLD = [Device(index=0, name="as torch tells", memory_bytes=1)]


def offered(*cards: dict[str, Any], visible: str | None = None) -> list[str | None]:
    """Their UUIDs."""
    found = devices.of_this_machine(Driver(Nvml(*cards)), TOLD, visible)
    assert [device.index for device in found] == list(range(len(found)))
    return [device.uuid for device in found]


def test_every_gpu_is_offered_with_its_name_memory_and_uuid() -> None:
    found = devices.of_this_machine(Driver(Nvml(card(0), card(1))), TOLD, None)
    assert found[1] == Device(index=1, name="NVIDIA H200", memory_bytes=2**37, uuid="GPU-1")
    assert len(found) == 2


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("2", ["GPU-2c"]),
        ("2,0", ["GPU-2c", "GPU-0a"]),
        (" 1 , 0 ", ["GPU-1b", "GPU-0a"]),
        ("GPU-1b", ["GPU-1b"]),
        ("GPU-2,0", ["GPU-2c", "GPU-0a"]),
        ("1,1", ["GPU-1b"]),
        ("", []),
    ],
)
def test_it_is_those_that_cuda_visible_devices_names(visible: str, uuids: list[str]) -> None:
    cards = [card(number, nvmlDeviceGetUUID=f"GPU-{number}{'abc'[number]}") for number in range(3)]
    assert offered(*cards, visible=visible) == uuids


@pytest.mark.parametrize("wrong", ["7", "-1", "GPU-", "GPU-9", "H200", "MIG-x", "NoDevFiles"])
def test_from_a_name_of_nothing_on_none_is_offered_and_the_log_says_so(
    wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert offered(card(0), card(1), card(2), visible=f"1,{wrong},0") == ["GPU-1"]
    assert f": {wrong} names no GPU of this machine" in caplog.text


def test_a_divided_gpu_is_offered_by_its_parts() -> None:
    found = devices.of_this_machine(Driver(Nvml(divided(0, "MIG-a", "MIG-b"), card(1))), TOLD, None)
    assert [device.uuid for device in found] == ["MIG-a", "MIG-b", "GPU-1"]
    assert (found[0].name, found[0].memory_bytes) == ("NVIDIA H200 MIG 1g.18gb", 2**34)
    assert offered(divided(0), card(1)) == ["GPU-1"], "divided, and nothing made of it: CUDA has no use for it"


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        ("0", ["MIG-a1", "MIG-b2"]),
        ("GPU-0", ["MIG-a1", "MIG-b2"]),
        ("MIG-b2", ["MIG-b2"]),
        ("1,MIG-a", ["GPU-1", "MIG-a1"]),
    ],
)
def test_parts_are_named_by_their_own_uuid_or_all_by_their_gpu(visible: str, uuids: list[str]) -> None:
    assert offered(divided(0, "MIG-a1", "MIG-b2"), card(1), visible=visible) == uuids


def test_gpus_of_several_kinds_in_one_worker_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    offered(card(0), card(1))
    assert not caplog.records
    offered(card(0), card(1, nvmlDeviceGetName=b"NVIDIA L4"))
    assert "several kinds, NVIDIA H200, NVIDIA L4" in caplog.text


def test_without_a_driver_it_is_what_torch_tells_and_without_torchs_word_none(caplog: pytest.LogCaptureFixture) -> None:
    assert devices.of_this_machine(None, TOLD, "5") == TOLD
    with caplog.at_level(logging.WARNING):
        assert devices.of_this_machine(Driver(Nvml(card(0))), [], None) == []
    assert "torch sees none of the 1 GPUs" in caplog.text
