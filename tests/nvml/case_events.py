"""Event sets: who hears what, when, and what a wait says of a GPU that is lost, reset or hung."""

import time
from contextlib import ExitStack, contextmanager

import pynvml as nvml
from case_faults import Timed
from case_readings import fails_with

GPU = 5
ALL = 0xFF9F
RECOVERY_ACTION, GPU_UNAVAILABLE = 0x8000, 0x4000
NO_INSTANCE = 0xFFFFFFFF


@contextmanager
def registered(*gpus, mask=ALL):
    """An event set with the GPUs, and their handles."""
    events = nvml.nvmlEventSetCreate()
    devices = [nvml.nvmlDeviceGetHandleByIndex(gpu) for gpu in gpus]
    for device in devices:
        nvml.nvmlDeviceRegisterEvents(device, mask, events)
    try:
        yield events, devices
    finally:
        nvml.nvmlEventSetFree(events)


def heard(events, millis=0):
    event = nvml.nvmlEventSetWait_v2(events, millis)
    return event.eventType, event.eventData, event.gpuInstanceId, event.computeInstanceId


def xid_wakes_at_once(_, fake):
    with registered(GPU) as (events, [device]):
        wait = Timed(lambda: nvml.nvmlEventSetWait_v2(events, 5_000))
        time.sleep(0.2)
        began = time.monotonic()
        assert fake.xid(GPU, 79) == 1
        event = wait.done().said
        assert time.monotonic() - began < 1.0
        assert (event.eventType, event.eventData) == (nvml.nvmlEventTypeXidCriticalError, 79)
        assert (event.gpuInstanceId, event.computeInstanceId) == (NO_INSTANCE, NO_INSTANCE)
        assert nvml.nvmlDeviceGetUUID(event.device) == nvml.nvmlDeviceGetUUID(device)
        fails_with(nvml.NVML_ERROR_TIMEOUT, lambda: heard(events))


def any_event(_, fake):
    """Types that libraries of today do not name, with instances, in the order they were told."""
    with registered(GPU) as (events, _devices):
        fake.event(GPU, RECOVERY_ACTION, 4)
        fake.event(GPU, GPU_UNAVAILABLE, 1 << 40, 3, 9)
        fake.xid(GPU, 0xFFFF_FFFF_FFFF)
        assert heard(events) == (RECOVERY_ACTION, 4, NO_INSTANCE, NO_INSTANCE)
        assert heard(events) == (GPU_UNAVAILABLE, 1 << 40, 3, 9)
        assert heard(events) == (8, 0xFFFF_FFFF_FFFF, NO_INSTANCE, NO_INSTANCE)
        fails_with(nvml.NVML_ERROR_TIMEOUT, lambda: heard(events))


def only_what_is_registered(_, fake):
    with registered(GPU, mask=nvml.nvmlEventTypeXidCriticalError) as (events, [device]):
        with registered(GPU, GPU + 1) as (second, _devices):
            assert fake.event(GPU, RECOVERY_ACTION, 1) == 1
            assert fake.xid(GPU, 48) == 2
            assert fake.xid(GPU + 1, 31) == 1
            assert fake.xid(GPU + 2, 31) == 0
            assert [heard(second)[1] for _ in range(3)] == [1, 48, 31]
        assert heard(events)[1] == 48
        fails_with(nvml.NVML_ERROR_TIMEOUT, lambda: heard(events))
        fake.set(GPU, supported_events=0x1F)
        fails_with(nvml.NVML_ERROR_NOT_SUPPORTED,
                   lambda: nvml.nvmlDeviceRegisterEvents(device, 0x8008, events))
        nvml.nvmlDeviceRegisterEvents(device, nvml.nvmlEventTypePState, events)
        assert fake.event(GPU, nvml.nvmlEventTypePState, 2) == 1
        assert heard(events)[0] == nvml.nvmlEventTypePState


def waits_as_long_as_told(_, fake):
    with registered(GPU) as (events, _devices):
        for millis in (0, 50, 300):
            wait = Timed(lambda: heard(events, millis)).done()
            assert wait.error == nvml.NVML_ERROR_TIMEOUT, wait.said
            assert millis / 1000 <= wait.seconds < millis / 1000 + 1.0, wait.seconds


def lost_ends_a_wait(_, fake):
    """What was told before is heard first; then each wait fails at once."""
    with registered(GPU) as (events, _devices):
        wait = Timed(lambda: heard(events, 5_000))
        time.sleep(0.2)
        fake.ask(gpu=GPU, xid=79, set={"error": 15})
        assert wait.done(2.0).said[1] == 79, wait.error
        for _ in range(3):
            wait = Timed(lambda: heard(events, 5_000)).done(2.0)
            assert wait.error == nvml.NVML_ERROR_GPU_IS_LOST
        fake.unset(GPU, "error")
        wait = Timed(lambda: heard(events, 5_000))
        time.sleep(0.1)
        fake.set(GPU, error=999)
        assert wait.done(2.0).error == nvml.NVML_ERROR_UNKNOWN


def reset_ends_a_wait(_, fake):
    """A set is of no use to a GPU that was reset until its new handle is registered in it."""
    with registered(GPU) as (events, _devices):
        wait = Timed(lambda: heard(events, 5_000))
        time.sleep(0.1)
        fake.reset(GPU)
        assert wait.done(2.0).error == nvml.NVML_ERROR_GPU_IS_LOST
        assert fake.xid(GPU, 31) == 0
        nvml.nvmlDeviceRegisterEvents(nvml.nvmlDeviceGetHandleByIndex(GPU), ALL, events)
        assert fake.xid(GPU, 13) == 1
        assert heard(events)[1] == 13


def hang_holds_a_wait(_, fake):
    """A wait that is under way hangs too, and hears afterwards what was told meanwhile."""
    with registered(GPU) as (events, _devices), registered(GPU + 1) as (second, _others):
        wait = Timed(lambda: heard(events, 100))
        time.sleep(0.03)
        fake.hang(GPU)
        time.sleep(0.3)
        assert wait.is_alive()
        assert fake.xid(GPU, 62) == 1
        assert fake.xid(GPU + 1, 63) == 1
        other = Timed(lambda: heard(second, 5_000)).done(2.0)
        assert other.said[1] == 63
        time.sleep(0.1)
        assert wait.is_alive()
        fake.unhang(GPU)
        assert wait.done(2.0).said[1] == 62, wait.error
        fake.hang(GPU, 300)
        wait = Timed(lambda: heard(events, 0)).done()
        assert wait.error == nvml.NVML_ERROR_TIMEOUT and 0.29 < wait.seconds < 2.0, wait.seconds


def queues_have_an_end(_, fake):
    with registered(GPU) as (events, _devices):
        for number in range(1024):
            fake.xid(GPU, number)
        try:
            fake.xid(GPU, 1024)
            raise AssertionError("an event beyond the last was taken")
        except Exception as error:
            assert "1024 events are queued already" in str(error), error
        assert [heard(events)[1] for _ in range(1024)] == list(range(1024))
        fails_with(nvml.NVML_ERROR_TIMEOUT, lambda: heard(events))


def freed_sets_are_gone(_, fake):
    with registered(GPU) as (events, _devices):
        wait = Timed(lambda: heard(events, 5_000))
        time.sleep(0.1)
    assert wait.done(2.0).error == nvml.NVML_ERROR_INVALID_ARGUMENT
    assert fake.xid(GPU, 79) == 0
    fails_with(nvml.NVML_ERROR_INVALID_ARGUMENT, lambda: heard(events))
    fails_with(nvml.NVML_ERROR_INVALID_ARGUMENT, lambda: nvml.nvmlEventSetFree(events))


def all_at_once(_, fake):
    """Eight waiting threads hear all that is told of their GPU in its order, whatever else goes on."""
    events = 100

    def hear(own):
        said = []
        while len(said) < events:
            try:
                said.append(heard(own, 20)[1])
            except nvml.NVMLError as error:
                assert error.value == nvml.NVML_ERROR_TIMEOUT, error
        return said

    with ExitStack() as stack:
        sets = [stack.enter_context(registered(gpu))[0] for gpu in range(8)]
        waits = [Timed(lambda own=own: hear(own)) for own in sets]
        for number in range(events):
            for gpu in range(8):
                if (number + gpu) % 10 == 0:
                    fake.hang(gpu, 5)
                fake.ask(gpu=gpu, xid=number, set={"temperature": number})
                if (number + gpu) % 10 == 5:
                    fake.unhang(gpu)
        assert [wait.done(20.0).said for wait in waits] == [list(range(events))] * 8


CASES = [xid_wakes_at_once, any_event, only_what_is_registered, waits_as_long_as_told,
         lost_ends_a_wait, reset_ends_a_wait, hang_holds_a_wait, queues_have_an_end,
         freed_sets_are_gone, all_at_once]
