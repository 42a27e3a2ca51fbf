"""Each reading: where NVIDIA's client finds it, and what it says where the GPU does not have it."""

from ctypes import byref

import pynvml as nvml

GPU = 3
MIB = 1 << 20


def field(device, number, scope=0):
    """The value of a field by the type that it says it has."""
    value = nvml.nvmlDeviceGetFieldValues(device, [(number, scope)])[0]
    assert value.fieldId == number and value.scopeId == scope, value
    if value.nvmlReturn != nvml.NVML_SUCCESS:
        raise nvml.NVMLError(value.nvmlReturn)
    assert value.timestamp > 1_600_000_000_000_000, value.timestamp
    names = {
        nvml.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
        nvml.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
        nvml.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    }
    return getattr(value.value, names[value.valueType])


def structure(value):
    """A structure of ctypes as a dictionary, without its version."""
    pairs = {name: getattr(value, name) for name, *_ in value._fields_ if name != "version"}
    return {name: list(it) if hasattr(it, "__len__") and not isinstance(it, str | bytes) else it
            for name, it in pairs.items()}


def filled(make, call):
    """What `call` writes into a structure of the client's."""

    def ask(device):
        value = make()
        call(device, byref(value))
        return structure(value)

    return ask


def processes(call):
    def ask(device):
        return [
            (it.pid, it.usedGpuMemory, it.gpuInstanceId, it.computeInstanceId)
            for it in call(device)
        ]

    return ask


def fields_of(number, scope=0):
    return lambda device: field(device, number, scope)


def two(call, first, second):
    """What a call with two more arguments says."""
    return lambda device: call(device, first, second)


SOME = [
    {"pid": 4242, "memory_bytes": 5 << 33, "gpu_instance": 6, "compute_instance": 7},
    {"pid": 4243},
]
SEEN = [(4242, 5 << 33, 6, 7), (4243, None, 0xFFFFFFFF, 0xFFFFFFFF)]
SRAM = list(range(1 << 40, (1 << 40) + 11))
SRAM_NAMES = ["aggregateUncParity", "aggregateUncSecDed", "aggregateCor", "volatileUncParity",
              "volatileUncSecDed", "volatileCor", "aggregateUncBucketL2", "aggregateUncBucketSm",
              "aggregateUncBucketPcie", "aggregateUncBucketMcu", "aggregateUncBucketOther"]
CLUSTER = list(range(1, 17))
FABRIC = {"fabric_state": 2, "fabric_status": 29, "fabric_clique": 77, "fabric_health_mask": 0xABCDE,
          "fabric_health": 3}
SHOWN = {"clusterUuid": CLUSTER, "status": 29, "cliqueId": 77, "state": 2}


def fabric(number):
    names = {2: ("c_nvmlGpuFabricInfo_v2_t", "nvmlGpuFabricInfo_v2"),
             3: ("c_nvmlGpuFabricInfo_v3_t", "nvmlGpuFabricInfo_v3")}

    def make():
        kind, version = names[number]
        value = getattr(nvml, kind)()
        value.version = getattr(nvml, version)
        return value

    return filled(make, nvml.nvmlDeviceGetGpuFabricInfoV)


# What is set, how it is asked for, what is seen, and the field without which it is not supported, or None.
ROWS = [
    ({"name": "Fake GPU"}, nvml.nvmlDeviceGetName, "Fake GPU", "name"),
    ({"minor": 41}, nvml.nvmlDeviceGetMinorNumber, 41, "minor"),
    ({"ecc": 1, "ecc_pending": 0}, nvml.nvmlDeviceGetEccMode, [1, 0], "ecc"),
    *(
        ({name: (1 << 40) + 5}, two(nvml.nvmlDeviceGetTotalEccErrors, kind, span), (1 << 40) + 5, name)
        for name, kind, span in [
            ("ecc_corrected", 0, 0), ("ecc_uncorrected", 1, 0),
            ("ecc_corrected_lifetime", 0, 1), ("ecc_uncorrected_lifetime", 1, 1),
        ]
    ),
    ({"ecc_uncorrected": 9}, lambda d: nvml.nvmlDeviceGetMemoryErrorCounter(d, 1, 0, 2), 9,
     "ecc_uncorrected"),
    ({"sram": SRAM}, lambda d: nvml.nvmlDeviceGetMemoryErrorCounter(d, 0, 0, 7), SRAM[5], "sram"),
    ({"sram": SRAM}, lambda d: nvml.nvmlDeviceGetMemoryErrorCounter(d, 1, 1, 7), SRAM[0] + SRAM[1],
     "sram"),
    ({"sram": SRAM, "sram_threshold_exceeded": 1},
     filled(nvml.c_nvmlEccSramErrorStatus_v1_t, nvml.nvmlDeviceGetSramEccErrorStatus),
     dict(zip(SRAM_NAMES, SRAM)) | {"bThresholdExceeded": 1}, "sram"),
    ({"remapped_corrected": 11, "remapped_uncorrected": 12, "remap_pending": 1, "remap_failed": 1},
     nvml.nvmlDeviceGetRemappedRows, (11, 12, 1, 1), "remap_failed"),
    ({"remap_histogram": [5, 4, 3, 2, 1]},
     lambda d: structure(nvml.nvmlDeviceGetRowRemapperHistogram(d)),
     {"max": 5, "high": 4, "partial": 3, "low": 2, "none": 1}, "remap_histogram"),
    ({"retired_pages_corrected": [1 << 44, 2]}, lambda d: nvml.nvmlDeviceGetRetiredPages(d, 0),
     [1 << 44, 2], "retired_pages_corrected"),
    ({"retired_pages_uncorrected": []}, lambda d: nvml.nvmlDeviceGetRetiredPages(d, 1), [],
     "retired_pages_uncorrected"),
    ({"retired_pages_uncorrected": [7, 8]}, lambda d: nvml.nvmlDeviceGetRetiredPages_v2(d, 1),
     [{"address": 7, "timestamp": 1_700_000_000}, {"address": 8, "timestamp": 1_700_000_001}],
     "retired_pages_uncorrected"),
    ({"retired_pages_pending": 1}, nvml.nvmlDeviceGetRetiredPagesPendingStatus, 1,
     "retired_pages_pending"),
    ({"inforom": 0}, nvml.nvmlDeviceValidateInforom, None, "inforom"),
    ({"temperature": 91}, lambda d: nvml.nvmlDeviceGetTemperature(d, 0), 91, "temperature"),
    ({"temperature": -3}, lambda d: nvml.nvmlDeviceGetTemperatureV(d, 0), -3, "temperature"),
    *(
        ({name: 90 + at}, lambda d, at=at: nvml.nvmlDeviceGetTemperatureThreshold(d, at), 90 + at, name)
        for at, name in enumerate(["temperature_shutdown", "temperature_slowdown",
                                   "temperature_memory_max", "temperature_gpu_max"])
    ),
    ({"temperature": 80}, nvml.nvmlDeviceGetMarginTemperature, 7, "margin"),
    ({"margin": -4}, nvml.nvmlDeviceGetMarginTemperature, -4, "margin"),
    ({"throttle_reasons": 0x8000_0000_0040}, nvml.nvmlDeviceGetCurrentClocksThrottleReasons,
     0x8000_0000_0040, "throttle_reasons"),
    ({"throttle_reasons": 0x24}, nvml.nvmlDeviceGetCurrentClocksEventReasons, 0x24,
     "throttle_reasons"),
    *(
        ({"clocks_mhz": [1, 2, 3, 4]}, lambda d, at=at: nvml.nvmlDeviceGetClockInfo(d, at), at + 1,
         "clocks_mhz")
        for at in range(4)
    ),
    *(
        ({"max_clocks_mhz": [5, 6, 7, 8]}, lambda d, at=at: nvml.nvmlDeviceGetMaxClockInfo(d, at),
         at + 5, "max_clocks_mhz")
        for at in range(4)
    ),
    ({"performance_state": 8}, nvml.nvmlDeviceGetPerformanceState, 8, "performance_state"),
    ({"power_milliwatts": 654_321}, nvml.nvmlDeviceGetPowerUsage, 654_321, "power_milliwatts"),
    ({"power_limit_milliwatts": 600_001}, nvml.nvmlDeviceGetEnforcedPowerLimit, 600_001,
     "power_limit_milliwatts"),
    ({"utilization": 100, "memory_utilization": 33},
     lambda d: structure(nvml.nvmlDeviceGetUtilizationRates(d)), {"gpu": 100, "memory": 33},
     "utilization"),
    ({"memory_total_bytes": 100 * MIB, "memory_reserved_bytes": 3 * MIB, "memory_used_bytes": 20 * MIB},
     lambda d: structure(nvml.nvmlDeviceGetMemoryInfo(d)),
     {"total": 100 * MIB, "free": 77 * MIB, "used": 23 * MIB}, "memory_total_bytes"),
    ({"memory_total_bytes": 100 * MIB, "memory_reserved_bytes": 3 * MIB, "memory_used_bytes": 20 * MIB},
     lambda d: structure(nvml.nvmlDeviceGetMemoryInfo(d, version=nvml.nvmlMemory_v2)),
     {"total": 100 * MIB, "reserved": 3 * MIB, "free": 77 * MIB, "used": 20 * MIB},
     "memory_total_bytes"),
    *(
        ({name: value}, processes(call), seen, name)
        for name, call in [
            ("processes", nvml.nvmlDeviceGetComputeRunningProcesses_v3),
            ("graphics_processes", nvml.nvmlDeviceGetGraphicsRunningProcesses_v3),
            ("mps_processes", nvml.nvmlDeviceGetMPSComputeRunningProcesses_v3),
        ]
        for value, seen in [(SOME, SEEN), ([], [])]
    ),
    ({"pcie_width": 8}, nvml.nvmlDeviceGetCurrPcieLinkWidth, 8, "pcie_width"),
    ({"pcie_width_max": 32}, nvml.nvmlDeviceGetMaxPcieLinkWidth, 32, "pcie_width_max"),
    ({"pcie_generation": 1}, nvml.nvmlDeviceGetCurrPcieLinkGeneration, 1, "pcie_generation"),
    ({"pcie_generation_max": 6}, nvml.nvmlDeviceGetMaxPcieLinkGeneration, 6, "pcie_generation_max"),
    ({"pcie_replays": 17}, nvml.nvmlDeviceGetPcieReplayCounter, 17, "pcie_replays"),
    ({"links_inactive": [4, 9]},
     lambda d: [link for link in range(18) if not nvml.nvmlDeviceGetNvLinkState(d, link)], [4, 9],
     "links"),
    *(
        ({name: {"4": (1 << 33) + 1}},
         lambda d, at=at: [nvml.nvmlDeviceGetNvLinkErrorCounter(d, link, at) for link in (3, 4)],
         [0, (1 << 33) + 1], name)
        for at, name in enumerate(["link_replays", "link_recoveries", "link_crc_errors",
                                   "link_crc_data_errors"])
    ),
    ({}, lambda d: nvml.nvmlDeviceGetNvLinkRemotePciInfo(d, 1).bus, 5, "links"),
    (FABRIC, filled(nvml.c_nvmlGpuFabricInfo_t, nvml.nvmlDeviceGetGpuFabricInfo), SHOWN,
     "fabric_state"),
    (FABRIC, fabric(2), SHOWN | {"healthMask": 0xABCDE}, "fabric_state"),
    (FABRIC, fabric(3), SHOWN | {"healthMask": 0xABCDE, "healthSummary": 3}, "fabric_state"),
    ({"persistence": 0}, nvml.nvmlDeviceGetPersistenceMode, 0, "persistence"),
    ({"compute_mode": 3}, nvml.nvmlDeviceGetComputeMode, 3, "compute_mode"),
    ({"mig": 0, "mig_pending": 1}, nvml.nvmlDeviceGetMigMode, [0, 1], "mig"),
    ({"supported_events": 0x1F}, nvml.nvmlDeviceGetSupportedEventTypes, 0x1F, "supported_events"),
]

LARGE = (1 << 42) + 3
FIELDS = [
    ("ecc_corrected", nvml.NVML_FI_DEV_ECC_SBE_VOL_TOTAL, LARGE),
    ("ecc_uncorrected", nvml.NVML_FI_DEV_ECC_DBE_VOL_TOTAL, LARGE),
    ("ecc_corrected_lifetime", nvml.NVML_FI_DEV_ECC_SBE_AGG_TOTAL, LARGE),
    ("ecc_uncorrected_lifetime", nvml.NVML_FI_DEV_ECC_DBE_AGG_TOTAL, LARGE),
    ("memory_temperature", nvml.NVML_FI_DEV_MEMORY_TEMP, 93),
    ("pcie_replays", nvml.NVML_FI_DEV_PCIE_REPLAY_COUNTER, 21),
    ("remapped_corrected", nvml.NVML_FI_DEV_REMAPPED_COR, 22),
    ("remapped_uncorrected", nvml.NVML_FI_DEV_REMAPPED_UNC, 23),
    ("remap_pending", nvml.NVML_FI_DEV_REMAPPED_PENDING, 1),
    ("remap_failed", nvml.NVML_FI_DEV_REMAPPED_FAILURE, 1),
    ("pcie_nonfatal_errors", nvml.NVML_FI_DEV_PCIE_COUNT_NON_FATAL_ERROR, 24),
    ("pcie_fatal_errors", nvml.NVML_FI_DEV_PCIE_COUNT_FATAL_ERROR, 25),
    ("tlimit_shutdown", nvml.NVML_FI_DEV_TEMPERATURE_SHUTDOWN_TLIMIT, -9),
    ("tlimit_slowdown", nvml.NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT, -3),
    ("tlimit_memory_max", nvml.NVML_FI_DEV_TEMPERATURE_MEM_MAX_TLIMIT, 1),
    ("tlimit_gpu_max", nvml.NVML_FI_DEV_TEMPERATURE_GPU_MAX_TLIMIT, 2),
    ("recovery_action", nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 7),
]
LINK_FIELDS = [
    ("link_replays", nvml.NVML_FI_DEV_NVLINK_ERROR_DL_REPLAY),
    ("link_recoveries", nvml.NVML_FI_DEV_NVLINK_ERROR_DL_RECOVERY),
    ("link_crc_errors", nvml.NVML_FI_DEV_NVLINK_ERROR_DL_CRC),
]


def fails_with(code, ask):
    """Asserts that NVML answers `code`."""
    try:
        said = ask()
    except nvml.NVMLError as error:
        assert error.value == code, (error, code)
        return
    raise AssertionError(f"answered {said!r} instead of {code}")


def each_reading(_, fake):
    """Every row on one GPU, while its neighbours keep what a healthy one has."""
    device = nvml.nvmlDeviceGetHandleByIndex(GPU)
    other = nvml.nvmlDeviceGetHandleByIndex(GPU + 1)
    for fields, ask, seen, name in ROWS:
        before = None
        if name and not name.startswith("retired_pages"):
            before = ask(other)
        fake.set(GPU, **fields)
        said = ask(device)
        assert said == seen, (fields, said, seen)
        if before is not None:
            assert ask(other) == before, (fields, "another GPU has changed")
        fake.unset(GPU, name)
        fails_with(nvml.NVML_ERROR_NOT_SUPPORTED, lambda: ask(device))
        fake.restore(GPU)


def each_field(_, fake):
    device = nvml.nvmlDeviceGetHandleByIndex(GPU)
    for name, number, value in FIELDS:
        fake.set(GPU, **{name: value})
        assert field(device, number) == value, (name, field(device, number))
        fake.unset(GPU, name)
        fails_with(nvml.NVML_ERROR_NOT_SUPPORTED, lambda: field(device, number))
        fake.restore(GPU)


def fields_of_links(_, fake):
    """Scopes are links, all ones stand for all of them, and there are no more than the GPU has."""
    device = nvml.nvmlDeviceGetHandleByIndex(GPU)
    rows = [(name, number, {"2": LARGE, "17": 4}) for name, number in LINK_FIELDS]
    counts = range(nvml.NVML_FI_DEV_NVLINK_COUNT_MALFORMED_PACKET_ERRORS,
                   nvml.NVML_FI_DEV_NVLINK_COUNT_LINK_RECOVERY_EVENTS + 1)
    assert len(counts) == 10
    rows += [("link_fields", number, {str(number): {"2": LARGE, "17": 4}}) for number in counts]
    for name, number, value in rows:
        fake.set(GPU, **{name: value})
        said = [field(device, number, scope) for scope in (0, 2, 17, 0xFFFFFFFF)]
        assert said == [0, LARGE, 4, LARGE + 4], (name, number, said)
        fails_with(nvml.NVML_ERROR_NOT_SUPPORTED, lambda: field(device, number, 18))
        fake.restore(GPU)


def fields_by_number(_, fake):
    """Several at once answer each for itself, and any number can be set or be taken away."""
    device = nvml.nvmlDeviceGetHandleByIndex(GPU)
    fake.set(GPU, fields={"230": 5, "191": LARGE, "144": None, "196": -7})
    asked = [230, 191, 144, 196, 60_000, (nvml.NVML_FI_DEV_NVLINK_ERROR_DL_CRC, 3)]
    values = nvml.nvmlDeviceGetFieldValues(device, asked)
    codes = [value.nvmlReturn for value in values]
    assert codes == [0, 0, nvml.NVML_ERROR_NOT_SUPPORTED, 0, nvml.NVML_ERROR_NOT_SUPPORTED, 0], codes
    assert values[0].value.uiVal == 5 and values[1].value.ullVal == LARGE
    assert values[3].value.siVal == -7
    fails_with(nvml.NVML_ERROR_INVALID_ARGUMENT, lambda: nvml.nvmlDeviceGetFieldValues(device, []))


CASES = [each_reading, each_field, fields_of_links, fields_by_number]
