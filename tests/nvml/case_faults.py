"""Who is found, and what becomes of calls on GPUs that are lost, gone, reset or hung."""

import threading
import time

import pynvml as nvml
from case_readings import fails_with

GPU = 2
GPUS = 8


def found_by_each_name(_, fake):
    assert nvml.nvmlDeviceGetCount() == GPUS
    uuids = set()
    for index in range(GPUS):
        device = nvml.nvmlDeviceGetHandleByIndex(index)
        uuid, pci = nvml.nvmlDeviceGetUUID(device), nvml.nvmlDeviceGetPciInfo_v3(device)
        assert uuid == fake.get(index)["uuid"]
        uuids.add(uuid)
        for again in [nvml.nvmlDeviceGetHandleByUUID(uuid),
                      nvml.nvmlDeviceGetHandleByPciBusId(pci.busId)]:
            assert nvml.nvmlDeviceGetIndex(again) == index
        assert nvml.nvmlDeviceGetMinorNumber(device) == index
        assert nvml.nvmlDeviceGetName(device) == "NVIDIA H200"
    assert len(uuids) == GPUS
    fails_with(nvml.NVML_ERROR_INVALID_ARGUMENT, lambda: nvml.nvmlDeviceGetHandleByIndex(GPUS))
    fails_with(nvml.NVML_ERROR_NOT_FOUND, lambda: nvml.nvmlDeviceGetHandleByUUID("GPU-none"))
    fails_with(nvml.NVML_ERROR_NOT_FOUND,
               lambda: nvml.nvmlDeviceGetHandleByPciBusId("00000000:FF:00.0"))
    fails_with(nvml.NVML_ERROR_INVALID_ARGUMENT, lambda: nvml.nvmlDeviceGetHandleByPciBusId("slot"))


def pci_address(_, fake):
    """Each part of the structure where NVIDIA's client looks for it."""
    fake.set(GPU, pci_bus_id="0001abcd:f3:1d.0", pci_device_id=0x12345678, pci_subsystem_id=0x9ABCDEF0)
    pci = nvml.nvmlDeviceGetPciInfo_v3(nvml.nvmlDeviceGetHandleByIndex(GPU))
    seen = (pci.domain, pci.bus, pci.device, pci.pciDeviceId, pci.pciSubSystemId)
    assert seen == (0x1ABCD, 0xF3, 0x1D, 0x12345678, 0x9ABCDEF0), seen
    assert pci.busId in ("0001ABCD:F3:1D.0", b"0001ABCD:F3:1D.0"), pci.busId
    assert pci.busIdLegacy in ("ABCD:F3:1D.0", b"ABCD:F3:1D.0"), pci.busIdLegacy


def system(_, fake):
    fake.set_system(driver_version="615.1", nvml_version="13.615.1", cuda_version=13_000)
    assert nvml.nvmlSystemGetDriverVersion() == "615.1"
    assert nvml.nvmlSystemGetNVMLVersion() == "13.615.1"
    assert nvml.nvmlSystemGetCudaDriverVersion() == 13_000
    assert nvml.nvmlSystemGetCudaDriverVersion_v2() == 13_000
    fake.set_system(confidential_environment=2, confidential_feature=1, confidential_dev_tools=3,
                    confidential_ready=1)
    state = nvml.nvmlSystemGetConfComputeState()
    assert (state.environment, state.ccFeature, state.devToolsMode) == (2, 1, 3)
    assert nvml.nvmlSystemGetConfComputeGpusReadyState() == 1
    fake.set_system(confidential_feature=None, confidential_ready=None)
    fails_with(nvml.NVML_ERROR_NOT_SUPPORTED, nvml.nvmlSystemGetConfComputeState)
    fails_with(nvml.NVML_ERROR_NOT_SUPPORTED, nvml.nvmlSystemGetConfComputeGpusReadyState)
    fake.set_system(errors={"nvmlSystemGetDriverVersion": 999, "nvmlDeviceGetCount_v2": 17})
    fails_with(nvml.NVML_ERROR_UNKNOWN, nvml.nvmlSystemGetDriverVersion)
    fails_with(nvml.NVML_ERROR_OPERATING_SYSTEM, nvml.nvmlDeviceGetCount)


def error_texts(_, fake):
    """NVIDIA's client has texts of its own for the codes that it knows by name."""
    known = [code for name, code in vars(nvml).items() if name.startswith("NVML_ERROR_")]
    texts = {code: nvml.nvmlErrorString(code) for code in known}
    texts = {code: text.decode() if isinstance(text, bytes) else text for code, text in texts.items()}
    assert len(set(texts.values())) == len(texts) >= 29, texts
    assert texts[nvml.NVML_ERROR_GPU_IS_LOST] == "GPU is lost"


def lost(_, fake):
    device = nvml.nvmlDeviceGetHandleByIndex(GPU)
    uuid = nvml.nvmlDeviceGetUUID(device)
    for code in (15, 16, 17, 27, 28, 29, 999):
        fake.set(GPU, error=code)
        for ask in [lambda: nvml.nvmlDeviceGetUUID(device),
                    lambda: nvml.nvmlDeviceGetIndex(device),
                    lambda: nvml.nvmlDeviceGetTemperature(device, 0),
                    lambda: nvml.nvmlDeviceGetFieldValues(device, [230]),
                    lambda: nvml.nvmlDeviceGetHandleByIndex(GPU),
                    lambda: nvml.nvmlDeviceGetHandleByUUID(uuid)]:
            fails_with(code, ask)
    nvml.nvmlDeviceGetTemperature(nvml.nvmlDeviceGetHandleByIndex(GPU + 1), 0)
    assert nvml.nvmlDeviceGetCount() == GPUS
    fake.unset(GPU, "error")
    assert nvml.nvmlDeviceGetUUID(device) == uuid


def one_call_fails(_, fake):
    device = nvml.nvmlDeviceGetHandleByIndex(GPU)
    fake.set(GPU, errors={"nvmlDeviceGetPowerUsage": 999, "nvmlDeviceGetFieldValues": 4}, inforom=14)
    fails_with(nvml.NVML_ERROR_UNKNOWN, lambda: nvml.nvmlDeviceGetPowerUsage(device))
    fails_with(nvml.NVML_ERROR_NO_PERMISSION, lambda: nvml.nvmlDeviceGetFieldValues(device, [230]))
    fails_with(nvml.NVML_ERROR_CORRUPTED_INFOROM, lambda: nvml.nvmlDeviceValidateInforom(device))
    assert nvml.nvmlDeviceGetTemperature(device, 0) == 45


def missing(_, fake):
    """A GPU that is gone: those behind it move up."""
    devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(GPUS)]
    uuids = [nvml.nvmlDeviceGetUUID(device) for device in devices]
    fake.set(GPU, missing=1)
    assert nvml.nvmlDeviceGetCount() == GPUS - 1
    fails_with(nvml.NVML_ERROR_NOT_FOUND, lambda: nvml.nvmlDeviceGetHandleByUUID(uuids[GPU]))
    fails_with(nvml.NVML_ERROR_GPU_IS_LOST, lambda: nvml.nvmlDeviceGetUUID(devices[GPU]))
    assert nvml.nvmlDeviceGetIndex(devices[GPU + 1]) == GPU
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetHandleByIndex(GPU)) == uuids[GPU + 1]


def reset(_, fake):
    old = nvml.nvmlDeviceGetHandleByIndex(GPU)
    uuid = nvml.nvmlDeviceGetUUID(old)
    fake.reset(GPU)
    fails_with(nvml.NVML_ERROR_GPU_IS_LOST, lambda: nvml.nvmlDeviceGetUUID(old))
    new = nvml.nvmlDeviceGetHandleByUUID(uuid)
    assert nvml.nvmlDeviceGetUUID(new) == uuid
    fails_with(nvml.NVML_ERROR_GPU_IS_LOST, lambda: nvml.nvmlDeviceGetTemperature(old, 0))


class Timed(threading.Thread):
    """A call in a thread of its own, and how long it took."""

    def __init__(self, ask):
        super().__init__(daemon=True)
        self.ask, self.said, self.error, self.seconds = ask, None, None, None
        self.began = time.monotonic()
        self.start()

    def run(self):
        try:
            self.said = self.ask()
        except nvml.NVMLError as error:
            self.error = error.value
        self.seconds = time.monotonic() - self.began

    def done(self, seconds=5.0):
        self.join(seconds)
        assert not self.is_alive(), f"not within {seconds} s"
        return self


def hang_for_a_while(_, fake):
    """Each call on that GPU takes so long; the others' do not."""
    device, other = (nvml.nvmlDeviceGetHandleByIndex(index) for index in (GPU, GPU + 1))
    fake.hang(GPU, 300)
    calls = [Timed(lambda: nvml.nvmlDeviceGetTemperature(device, 0)),
             Timed(lambda: nvml.nvmlDeviceGetHandleByIndex(GPU))]
    time.sleep(0.05)
    assert Timed(lambda: nvml.nvmlDeviceGetTemperature(other, 0)).done().seconds < 0.2
    assert Timed(nvml.nvmlDeviceGetCount).done().seconds < 0.2
    for call in calls:
        assert 0.29 < call.done().seconds < 2.0 and call.error is None, call.seconds
    fake.unhang(GPU)
    assert Timed(lambda: nvml.nvmlDeviceGetTemperature(device, 0)).done().seconds < 0.2


def hang_for_ever(_, fake):
    """No call on it returns until it is let go, and not one on another waits for it."""
    devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(GPUS)]
    fake.hang(GPU)
    hung = [Timed(lambda: nvml.nvmlDeviceGetTemperature(devices[GPU], 0)) for _ in range(3)]
    time.sleep(0.3)
    assert all(call.is_alive() for call in hung)
    began = time.monotonic()
    for device in devices[:GPU] + devices[GPU + 1:]:
        for _ in range(100):
            nvml.nvmlDeviceGetTemperature(device, 0)
    assert time.monotonic() - began < 4.0
    fake.set(GPU, temperature=77)
    assert all(call.is_alive() for call in hung), "a setting has let it go"
    fake.unhang(GPU)
    assert [call.done().said for call in hung] == [77, 77, 77]


CASES = [found_by_each_name, pci_address, system, error_texts, lost, one_call_fails, missing, reset,
         hang_for_a_while, hang_for_ever]
