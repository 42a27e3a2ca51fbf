//! A fake NVML library of a test's own, and what becomes of its GPUs; `tests/fake_nvml` says what it can be
//! told.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nvml_wrapper::Nvml;
use nvml_wrapper::bitmasks::event::EventTypes;
use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::error::NvmlError;
use serde_json::{Value, json};
use tempfile::TempDir;

/// A command is obeyed at once; the rest is for a loaded machine.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A copy of the library, so that each test has a host of its own.
#[derive(Debug)]
pub(crate) struct FakeNvml {
    folder: TempDir,
}

impl FakeNvml {
    /// A host with the GPUs of `scenario`: eight that are well where it names none.
    pub(crate) fn new(scenario: &Value) -> Self {
        // In a short path, because a unix socket's is.
        let folder = tempfile::Builder::new().prefix("kvlens-").tempdir();
        let fake = Self {
            folder: folder.expect("a folder"),
        };
        let built = built();
        let copied = fs::copy(&built, fake.library());
        copied.unwrap_or_else(|error| {
            let how = "cargo build --profile test --example fake_nvml";
            panic!("{}: {error}; `{how}` builds it", built.display())
        });
        let path = fake.folder.path().join("scenario.json");
        fs::write(path, scenario.to_string()).expect("a scenario");
        fake
    }

    /// What is to be loaded, by this process or another.
    pub(crate) fn library(&self) -> PathBuf {
        self.folder.path().join("libnvidia-ml.so.1")
    }

    /// Sends a command to the library's process, which has called `nvmlInit` or is about to; the answer.
    pub(crate) fn ask(&self, command: &Value) -> Result<Value, String> {
        let mut stream = self.connected();
        for set in [UnixStream::set_read_timeout, UnixStream::set_write_timeout] {
            set(&stream, Some(ANSWER_MAX)).expect("a time limit");
        }
        writeln!(stream, "{command}").expect("it reads");
        let mut line = String::new();
        BufReader::new(stream)
            .read_line(&mut line)
            .expect("it answers");
        let answer: Value = serde_json::from_str(&line).expect("JSON");
        match answer["error"].as_str() {
            Some(error) => Err(error.to_owned()),
            None => Ok(answer),
        }
    }

    /// As [`Self::ask`], of a command that is right.
    pub(crate) fn tell(&self, command: &Value) -> Value {
        self.ask(command)
            .unwrap_or_else(|error| panic!("{command}: {error}"))
    }

    /// Sets fields of a GPU; null takes one from it.
    pub(crate) fn set(&self, gpu: usize, fields: &Value) {
        self.tell(&json!({ "gpu": gpu, "set": fields }));
    }

    /// Tells an XID.
    pub(crate) fn xid(&self, gpu: usize, xid: u64) {
        self.tell(&json!({ "gpu": gpu, "xid": xid }));
    }

    /// How often each symbol has been called on a GPU.
    pub(crate) fn calls(&self, gpu: usize) -> BTreeMap<String, u64> {
        let mut answer = self.tell(&json!({ "gpu": gpu, "counters": true }));
        serde_json::from_value(answer["counters"].take()).expect("numbers")
    }

    fn connected(&self) -> UnixStream {
        let path = self.folder.path().join("control.sock");
        let until = Instant::now() + ANSWER_MAX;
        loop {
            match UnixStream::connect(&path) {
                Ok(stream) => return stream,
                Err(error) if Instant::now() > until => panic!("{}: {error}", path.display()),
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Where cargo puts the library: beside the folder of tests.
fn built() -> PathBuf {
    let test = env::current_exe().expect("a test is a file");
    let profile = test.ancestors().nth(2).expect("it is in deps");
    profile.join("examples/libfake_nvml.so")
}

fn loaded(fake: &FakeNvml) -> Result<Nvml, NvmlError> {
    Nvml::builder().lib_path(fake.library().as_os_str()).init()
}

#[test]
fn nvml_wrapper_reads_what_the_fake_is_told() {
    let fake = FakeNvml::new(&json!({ "gpus": [{}, { "temperature": 51 }] }));
    let other = FakeNvml::new(&json!({ "init_return": 18 }));
    let refused = loaded(&other);
    assert!(matches!(refused, Err(NvmlError::LibRmVersionMismatch)));
    let nvml = loaded(&fake).expect("it begins");
    assert_eq!(nvml.device_count().expect("it counts"), 2);
    let gpu = nvml.device_by_index(1).expect("it is there");
    let temperature = || gpu.temperature(TemperatureSensor::Gpu);
    assert_eq!(temperature().expect("a reading"), 51);
    fake.set(1, &json!({ "temperature": 91 }));
    assert_eq!(temperature().expect("a reading"), 91);
    assert_eq!(fake.calls(1)["nvmlDeviceGetTemperature"], 2);
    assert_eq!(
        fake.ask(&json!({ "gpu": 2, "xid": 79 })),
        Err("gpu 2: there are 2".to_owned())
    );
    fake.set(1, &json!({ "error": 15 }));
    assert!(matches!(temperature(), Err(NvmlError::GpuLost)));
    other.tell(&json!({ "set": { "init_return": 0 } }));
    let other = loaded(&other).expect("the driver is there now");
    assert_eq!(other.device_count().expect("it counts"), 8);
}

#[test]
fn nvml_wrapper_hears_events_of_the_fake() {
    let fake = FakeNvml::new(&json!({}));
    let nvml = loaded(&fake).expect("it begins");
    let gpu = nvml.device_by_index(6).expect("it is there");
    let set = nvml.create_event_set().expect("a set");
    let kinds = EventTypes::CRITICAL_XID_ERROR;
    let set = gpu.register_events(kinds, set).expect("it is told");
    fake.xid(6, 63);
    let event = set.wait(5_000).expect("an event");
    assert_eq!(event.device.index().expect("a number"), 6);
    assert_eq!(event.event_type, kinds);
    assert!(matches!(set.wait(0), Err(NvmlError::Timeout)));
}
