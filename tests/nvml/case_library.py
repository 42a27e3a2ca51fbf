"""The library itself: how it is begun and ended, what it refuses, copies of it, and its control socket."""

import json
import os
import re
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from ctypes import CDLL, byref, c_char, c_uint, c_ulonglong, c_void_p, create_string_buffer, pointer
from pathlib import Path

import _ctypes
import pynvml as nvml
from case_faults import Timed
from case_readings import SOME, fails_with
from fake_nvml import FakeNvml, Refused, place

ROOT = Path(__file__).resolve().parents[1]


@contextmanager
def copy(scenario=None):
    """A copy of the library that runs on its own in this process, and what drives it."""
    with tempfile.TemporaryDirectory(prefix="kvlens-", dir="/tmp") as folder:
        placed = place(os.environ["LD_LIBRARY_PATH"] + "/libnvidia-ml.so.1", folder, scenario)
        yield CDLL(str(placed)), FakeNvml(placed.parent / "control.sock", 2.0)


@contextmanager
def standard_error():
    """What is written there, the library's words included."""
    kept = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        words = []
        try:
            yield words
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            written.seek(0)
            words.append(written.read().decode())


def refused(fake, wanted, **command):
    try:
        fake.ask(**command)
    except Refused as error:
        assert wanted in str(error), error
        return
    raise AssertionError(f"{command} was taken")


def bad_commands_are_told(_, fake):
    before = fake.get(1), fake.get()
    refused(fake, "no field temprature", gpu=1, set={"temprature": 4})
    refused(fake, "temperature: invalid type", gpu=1, set={"temperature": "hot"})
    refused(fake, "hang: unknown variant", gpu=1, set={"hang": "long"})
    refused(fake, "no symbol nvmlDeviceGetPower", gpu=1, set={"errors": {"nvmlDeviceGetPower": 999}})
    refused(fake, "uuid: another has", gpu=1, set={"uuid": fake.get(0)["uuid"]})
    refused(fake, "pci_bus_id: slot 3 is none", gpu=1, set={"pci_bus_id": "slot 3"})
    refused(fake, "gpu 8: there are 8", gpu=8, xid=79)
    refused(fake, "which gpu?", xid=79)
    refused(fake, "unknown field `explode`", explode=True)
    refused(fake, "no field temperature", set={"temperature": 4})
    refused(fake, "[type, data]", gpu=1, event=[8])
    refused(fake, "hang or unhang?", gpu=1, hang="forever", unhang=True)
    refused(fake, "of at most 4096", gpu=1, set={"retired_pages_corrected": list(range(4097))})
    refused(fake, "a line of more than 65536 bytes", gpu=1, set={"name": "x" * 66_000})
    assert (fake.get(1), fake.get()) == before, "a refused command has changed something"


def commands_on_one_connection(_, fake):
    with fake._connected(2.0) as connection:
        connection.sendall(b'{"gpu":1,"set":{"temperature":70}}\n{"gpu":1,"get":true}\n{no json}\n')
        said = connection.makefile()
        answers = [json.loads(said.readline()) for _ in range(3)]
    assert answers[0] == {"ok": True}
    assert answers[1]["ok"] and answers[1]["gpu"]["temperature"] == 70
    assert not answers[2]["ok"] and "key must be a string" in answers[2]["error"], answers[2]


def restored(_, fake):
    fresh = fake.get(4), fake.get(5), fake.get()
    fake.set(4, temperature=90, error=15, errors={"nvmlDeviceGetUUID": 4})
    fake.hang(4)
    fake.set(5, temperature=91)
    fake.set_system(driver_version="1")
    fake.restore(4)
    assert fake.get(4) == fresh[0] and fake.get(5)["temperature"] == 91
    fake.restore()
    assert (fake.get(4), fake.get(5), fake.get()) == fresh
    nvml.nvmlDeviceGetTemperature(nvml.nvmlDeviceGetHandleByIndex(4), 0)


def counted(_, fake):
    device = nvml.nvmlDeviceGetHandleByIndex(6)
    before, own, other = fake.counters(), fake.counters(6), fake.counters(5)
    for _ in range(5):
        nvml.nvmlDeviceGetTemperature(device, 0)
    after = fake.counters()
    changed = {symbol: n - before[symbol] for symbol, n in after.items() if n != before[symbol]}
    assert changed == {"nvmlDeviceGetTemperature": 5}, changed
    symbol = "nvmlDeviceGetTemperature"
    assert fake.counters(6)[symbol] == own.get(symbol, 0) + 5
    assert fake.counters(5) == other


def structures_say_their_version(_, fake):
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    rows = [("nvmlDeviceGetMemoryInfo_v2", nvml.c_nvmlMemory_v2_t, 0x02000028),
            ("nvmlDeviceGetGpuFabricInfoV", nvml.c_nvmlGpuFabricInfo_v3_t, 0x03000028),
            ("nvmlDeviceGetGpuFabricInfoV", nvml.c_nvmlGpuFabricInfo_v2_t, 0x02000024),
            ("nvmlDeviceGetSramEccErrorStatus", nvml.c_nvmlEccSramErrorStatus_v1_t, 0x01000068),
            ("nvmlDeviceGetTemperatureV", nvml.c_nvmlTemperature_v1_t, 0x0100000C),
            ("nvmlDeviceGetMarginTemperature", nvml.c_nvmlMarginTemperature_v1_t, 0x01000008)]
    for symbol, kind, version in rows:
        ask = nvml._nvmlGetFunctionPointer(symbol)
        value = kind()
        value.version = version
        assert ask(device, byref(value)) == 0 and value.version == version, symbol
        for wrong in (0, version + 1, version + (1 << 24) * 5):
            value.version = wrong
            assert ask(device, byref(value)) == nvml.NVML_ERROR_ARGUMENT_VERSION_MISMATCH, symbol


def lists_take_two_calls(_, fake):
    """The length where there is no room; not a byte behind what there is room for."""
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    fake.set(0, processes=SOME, retired_pages_corrected=[1, 2])
    infos = (nvml.c_nvmlProcessInfo_v3_t * 3)()
    infos[2].pid = 99
    for symbol, *cause, array in [("nvmlDeviceGetComputeRunningProcesses_v3", infos),
                                  ("nvmlDeviceGetRetiredPages", 0, (c_ulonglong * 3)(0, 0, 99))]:
        ask = nvml._nvmlGetFunctionPointer(symbol)
        for room, code in [(0, 7), (1, 7), (2, 0), (3, 0)]:
            count = c_uint(room)
            assert ask(device, *cause, byref(count), array if room else None) == code, (symbol, room)
            assert count.value == 2
    assert infos[1].pid == 4243 and infos[2].pid == 99
    assert list(array) == [1, 2, 99]


def begun_by_either_symbol(_, fake):
    """Whoever has begun it ends it once."""
    begin = nvml._nvmlGetFunctionPointer("nvmlInit_v2")
    end = nvml._nvmlGetFunctionPointer("nvmlShutdown")
    assert begin() == 0 and end() == 0
    assert nvml.nvmlDeviceGetCount() == 8


def texts_need_their_room(_, fake):
    device = nvml.nvmlDeviceGetHandleByIndex(0)
    uuid = fake.get(0)["uuid"].encode()
    ask = nvml._nvmlGetFunctionPointer("nvmlDeviceGetUUID")
    buffer = create_string_buffer(b"x" * 96)
    assert ask(device, buffer, c_uint(len(uuid))) == nvml.NVML_ERROR_INSUFFICIENT_SIZE
    assert buffer.value == b"x" * 96
    assert ask(device, buffer, c_uint(len(uuid) + 1)) == 0
    assert buffer.raw[:len(uuid) + 2] == uuid + b"\0x"


def wrong_arguments_are_refused(_, fake):
    device, nothing = nvml.nvmlDeviceGetHandleByIndex(0), None
    of = nvml._nvmlGetFunctionPointer
    value = c_uint()
    rows = [
        of("nvmlDeviceGetTemperature")(device, c_uint(0), nothing),
        of("nvmlDeviceGetTemperature")(device, c_uint(1), byref(value)),
        of("nvmlDeviceGetTemperatureThreshold")(device, c_uint(99), byref(value)),
        of("nvmlDeviceGetClockInfo")(device, c_uint(4), byref(value)),
        of("nvmlDeviceGetNvLinkState")(device, c_uint(18), byref(value)),
        of("nvmlDeviceGetTotalEccErrors")(device, c_uint(2), c_uint(0), byref(c_ulonglong())),
        of("nvmlDeviceGetMigMode")(device, byref(value), nothing),
        of("nvmlDeviceGetCount_v2")(nothing),
        of("nvmlDeviceGetHandleByUUID")(nothing, byref(c_void_p())),
        of("nvmlEventSetCreate")(nothing),
        of("nvmlEventSetWait_v2")(c_void_p(0x7770), byref(nvml.c_nvmlEventData_t()), c_uint(0)),
        of("nvmlDeviceGetUUID")(c_void_p(0), (c_char * 96)(), c_uint(96)),
        of("nvmlDeviceGetUUID")(c_void_p(0xDEADBEE0), (c_char * 96)(), c_uint(96)),
    ]
    assert set(rows) == {nvml.NVML_ERROR_INVALID_ARGUMENT}, rows


def bad_scenarios_are_told(_, fake):
    rows = [
        ({"gpus": [{}] * 65}, "gpus: 65, of at most 64"),
        ({"gpus": [{}, {"temprature": 1}]}, "gpus[1]: no field temprature"),
        ({"gpus": [{"uuid": "GPU-1"}, {"uuid": "GPU-1"}]}, "gpus: two have one uuid"),
        ({"gpus": 8}, "gpus: not a list"),
        ({"init_return": "no"}, "init_return: invalid type"),
        ([], "the scenario is no object"),
    ]
    for scenario, wanted in rows:
        with copy() as (library, _fake), standard_error() as words:
            (Path(library._name).parent / "scenario.json").write_text(json.dumps(scenario))
            assert library.nvmlInit_v2() == nvml.NVML_ERROR_UNKNOWN
            assert library.nvmlShutdown() == nvml.NVML_ERROR_UNINITIALIZED
        assert words[0].startswith("fake_nvml: ") and wanted in words[0], words
        assert "scenario.json" in words[0], words


def as_many_gpus_as_told(_, fake):
    for many in (0, 1, 64):
        with copy({"gpus": [{"minor": at + 9} for at in range(many)]}) as (library, own):
            assert library.nvmlInit_v2() == 0
            count = c_uint()
            assert library.nvmlDeviceGetCount_v2(byref(count)) == 0 and count.value == many
            if many:
                assert own.get(many - 1)["minor"] == many + 8
            assert library.nvmlShutdown() == 0


def copies_know_nothing_of_each_other(_, fake):
    with copy({"driver_version": "1"}) as (first, its), copy({"driver_version": "2"}) as (
            second, other):
        assert first.nvmlInit_v2() == 0 and second.nvmlInitWithFlags(c_uint(2)) == 0
        its.set_system(nvml_version="one")
        assert (its.get()["driver_version"], other.get()["driver_version"]) == ("1", "2")
        assert other.get()["nvml_version"] == fake.get()["nvml_version"] != "one"
        assert first.nvmlShutdown() == 0 and second.nvmlShutdown() == 0


def driver_appears(_, fake):
    """A failed nvmlInit leaves the control socket there, even if the library is unloaded then."""
    with copy({"init_return": 9}) as (library, own):
        for _ in range(3):
            assert library.nvmlInit_v2() == nvml.NVML_ERROR_DRIVER_NOT_LOADED
            _ctypes.dlclose(library._handle)
            library = CDLL(library._name)
        own.set_system(init_return=18)
        assert library.nvmlInit_v2() == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH
        assert library.nvmlDeviceGetCount_v2(byref(c_uint())) == nvml.NVML_ERROR_UNINITIALIZED
        own.set_system(init_return=0)
        assert library.nvmlInit_v2() == 0
        assert library.nvmlDeviceGetCount_v2(byref(c_uint())) == 0
        assert library.nvmlShutdown() == 0


def ends_with_the_last_shutdown(_, fake):
    def threads():
        return len(os.listdir("/proc/self/task"))

    before = threads()
    with copy() as (library, own):
        path = Path(own.control)
        for _ in range(20):
            assert library.nvmlInit_v2() == 0 and library.nvmlInit_v2() == 0
            own.set(0, temperature=66)
            device = c_void_p()
            assert library.nvmlDeviceGetHandleByIndex_v2(c_uint(0), byref(device)) == 0
            with own._connected(2.0) as idle:
                assert library.nvmlShutdown() == 0
                assert path.is_socket()
                own.hang(0)
                hung = Timed(lambda: library.nvmlDeviceGetTemperature(device, c_uint(0),
                                                                     pointer(c_uint())))
                assert library.nvmlShutdown() == 0
                assert not path.exists() and threads() <= before + 1
                assert idle.recv(1) == b""
            assert hung.done(1.0).said == nvml.NVML_ERROR_UNINITIALIZED
            assert library.nvmlShutdown() == nvml.NVML_ERROR_UNINITIALIZED
            assert library.nvmlInit_v2() == 0
            assert own.get(0)["temperature"] == 66 and own.get(0)["hang"] == "forever"
            own.unhang(0)
            assert library.nvmlShutdown() == 0
        (path.parent / "scenario.json").write_text('{"driver_version": "2"}')
        assert library.nvmlInit_v2() == 0
        assert own.get()["driver_version"] == "2" and own.get(0)["temperature"] == 45
        assert library.nvmlShutdown() == 0
    assert threads() <= before


def clients_may_go_at_any_time(_, fake):
    """More of them than are served, half of which leave in the middle of a line."""
    before = fake.get(1)
    for turn in range(40):
        with fake._connected(2.0) as connection:
            connection.sendall(b'{"gpu":1,"get":true}\n' * 20 + (b'{"gpu":1,' if turn % 2 else b""))
    crowd = [fake._connected(2.0) for _ in range(20)]
    for connection in crowd:
        connection.close()
    assert FakeNvml(fake.control, 5.0).get(1) == before


ASK = """
import ctypes, os, signal, sys
# As in a program in C: writing to a socket whose other side is gone would end it.
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
library = ctypes.CDLL(sys.argv[1])
print(library.nvmlInit_v2(), os.getpid(), flush=True)
sys.stdin.readline()
sys.exit(library.nvmlShutdown())
"""


def environment_names_the_files(_, fake):
    """Where no scenario lies beside the library; two processes cannot have one socket."""
    with tempfile.TemporaryDirectory(prefix="kvlens-", dir="/tmp") as folder:
        library = place(os.environ["LD_LIBRARY_PATH"] + "/libnvidia-ml.so.1", folder)
        library.with_name("scenario.json").rename(library.with_name("host.json"))
        library.with_name("host.json").write_text('{"driver_version": "7", "gpus": [{}]}')

        def start(control):
            named = {"FAKE_NVML_SCENARIO": f"{folder}/host.json", "FAKE_NVML_CONTROL": control}
            return subprocess.Popen([sys.executable, "-c", ASK, str(library)], text=True,
                                    env=os.environ | named, stdin=subprocess.PIPE,
                                    stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        first = start(f"{folder}/one.sock")
        assert first.stdout.readline().split()[0] == "0"
        assert FakeNvml(f"{folder}/one.sock").get()["driver_version"] == "7"
        second = start(f"{folder}/one.sock")
        assert second.stdout.readline().split()[0] == "999"
        with FakeNvml(f"{folder}/one.sock")._connected(2.0) as connection:
            connection.sendall(b'{"gpu":0,"get":true}\n' * 200)
        FakeNvml(f"{folder}/one.sock").ask(gpu=0, get=True)
        third = start(folder + "/{pid}.sock")
        code, pid = third.stdout.readline().split()
        assert code == "0" and FakeNvml(f"{folder}/{pid}.sock").counters()["nvmlInit_v2"] == 1
        said = [process.communicate("\n", 5.0)[1] for process in (first, second, third)]
        assert "another instance listens there" in said[1], said
        assert [first.returncode, second.returncode, third.returncode] == [0, 1, 0]
        killed = start(f"{folder}/one.sock")
        assert killed.stdout.readline().split()[0] == "0"
        killed.kill()
        killed.communicate(timeout=5.0)
        again = start(f"{folder}/one.sock")
        assert again.stdout.readline().split()[0] == "0", "what a dead process left is in the way"
        again.communicate("\n", 5.0)


def each_field_is_documented(_, fake):
    """The table in the fake's documentation names the fields that there are, and no others."""
    text = (ROOT / "fake_nvml" / "lib.rs").read_text()
    named = re.findall(r"^//! \| `(\w+)` \|", text, re.M)
    known = [*fake.get(0), *fake.get()]
    assert sorted(named) == sorted(known), set(named) ^ set(known)


def each_symbol_has_been_called(_, fake):
    """Stands last: NVIDIA's client knows all that the library exports, and has called it."""
    exported = subprocess.run(["nm", "-D", "--defined-only", os.environ["LD_LIBRARY_PATH"]
                               + "/libnvidia-ml.so.1"], capture_output=True, text=True, check=True)
    exported = {line.split()[2] for line in exported.stdout.splitlines()}
    counters = fake.counters()
    assert {name for name in exported if name.startswith("nvml")} == {*counters, "nvmlErrorString"}
    uncalled = [symbol for symbol, n in counters.items() if n == 0]
    assert not uncalled, uncalled


CASES = [bad_commands_are_told, commands_on_one_connection,
         clients_may_go_at_any_time, restored, counted,
         structures_say_their_version, lists_take_two_calls,
         begun_by_either_symbol, texts_need_their_room,
         wrong_arguments_are_refused, bad_scenarios_are_told, as_many_gpus_as_told,
         copies_know_nothing_of_each_other, driver_appears, ends_with_the_last_shutdown,
         environment_names_the_files, each_field_is_documented, each_symbol_has_been_called]
