"""Which slots are free, whose they are, and what a GPU that was put aside means for them."""

from acmix.catalog import Device
from worker.slots import Slots

CARDS = [Device(index=index, name="card", memory_bytes=2**34, uuid=f"GPU-{index}") for index in range(2)]


def test_a_machine_without_a_gpu_has_one_slot_however_many_shares() -> None:
    slots = Slots([], 4)
    assert (slots.count, slots.free(), slots.devices_of([0])) == (1, (0,), [])


def test_a_slot_is_a_gpu_and_free_ones_are_offered_lowest_first() -> None:
    slots = Slots(CARDS)
    assert slots.free() == (0, 1)
    slots.take([0], "job_a")
    assert (slots.free(), slots.busy(), slots.jobs_on(CARDS[0]), slots.jobs_on(CARDS[1])) == ((1,), 1, ["job_a"], [])
    slots.take([1], "job_b")
    slots.give_back([0])
    assert slots.free() == (0,)
    assert slots.devices_of([1, 0]) == [CARDS[1], CARDS[0]]


def test_shares_of_a_gpu_are_given_when_each_gpu_has_a_job() -> None:
    slots = Slots(CARDS, 2)
    assert slots.free() == (0, 1, 2, 3)
    assert [device.index for device in slots.devices_of(slots.free())] == [0, 1, 0, 1]
    slots.take([0], "job_a")
    slots.take([2], "job_b")
    assert slots.jobs_on(CARDS[0]) == ["job_a", "job_b"]


def test_of_a_gpu_that_was_put_aside_no_slot_is_offered_until_it_is_well() -> None:
    slots = Slots(CARDS, 2)
    assert slots.put_aside(CARDS[1], "it is lost")
    assert not slots.put_aside(CARDS[1], "it is lost"), "no news"
    slots.take([1], "job_a")
    assert slots.aside() == slots.count // len(CARDS) - 1, "one is held by a job"
    slots.give_back([1])
    assert slots.aside() == slots.count // len(CARDS)
    assert (slots.free(), slots.why_aside(CARDS[1])) == ((0, 2), "it is lost")
    assert slots.put_aside(CARDS[1], None)
    assert (slots.free(), slots.why_aside(CARDS[1])) == ((0, 1, 2, 3), None)
