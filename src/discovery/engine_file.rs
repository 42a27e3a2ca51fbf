//! What a running engine says of itself to the agent beside it: a file in the engine's folder.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::events::zmq::Source;
use crate::id::WorkerId;
use crate::lifecycle::shelter::runs;

/// Version of [`EngineFile`]'s form.
pub const ENGINE_FILE_VERSION: u32 = 1;

/// The file's name in an engine's folder.
pub const ENGINE_FILE: &str = "engine.json";

/// The name of the control socket of `kvlens engine` in that folder.
pub const CONTROL_SOCKET: &str = "control.sock";

/// Where one rank of an engine publishes its KV events.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvEndpoints {
    /// Where they are published.
    pub events: String,
    /// Whether the subscriber listens there, and the engine connects.
    pub bind: bool,
    /// Where the engine replays them.
    pub replay: String,
}

impl From<KvEndpoints> for Source {
    fn from(endpoints: KvEndpoints) -> Self {
        Self {
            events: endpoints.events,
            bind: endpoints.bind,
            replay: Some(endpoints.replay),
        }
    }
}

/// All that an agent needs to know of the engine beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineFile {
    pub version: u32,
    pub worker: WorkerId,
    /// The engine's kind, as `vllm`.
    pub kind: String,
    /// Where the engine answers on this host, as `unix:/path` or `http://127.0.0.1:port`.
    pub address: String,
    /// Where its gate answers other hosts; `None` where it has none that they could name.
    pub public_address: Option<String>,
    /// The name it serves its model under.
    pub name: String,
    /// The model's folder; `None` for the demo model.
    pub model: Option<String>,
    /// One for each data-parallel rank, rank 0 first.
    pub sources: Vec<KvEndpoints>,
    /// A folder whose files the engine may read as images.
    pub media_dir: Option<PathBuf>,
    /// The GPUs that are its own, by their UUIDs; none where it was left the choice.
    #[serde(default)]
    pub gpus: Vec<String>,
    /// The process of `kvlens engine`, in whose control group the engine's are.
    #[serde(default)]
    pub pid: Option<u32>,
}

impl EngineFile {
    /// Reads the file in an engine's folder.
    ///
    /// # Errors
    /// When there is none yet, or it is of another form.
    pub fn read(folder: &Path) -> io::Result<Self> {
        let text = fs::read(folder.join(ENGINE_FILE))?;
        let file: Self = serde_json::from_slice(&text)?;
        match file.version {
            ENGINE_FILE_VERSION => Ok(file),
            version => Err(io::Error::other(format!("version {version} is not known"))),
        }
    }

    /// Writes the file into an engine's folder; a reader sees all of it or nothing.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let new = folder.join(format!("{ENGINE_FILE}.new"));
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(new, folder.join(ENGINE_FILE))
    }
}

/// The folder of a worker's engine.
pub fn folder(base: Option<&Path>, worker: &WorkerId) -> PathBuf {
    runs(base).join(format!("engine-{worker}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let mut file = EngineFile {
            version: ENGINE_FILE_VERSION,
            worker: WorkerId::new("gpu-0").unwrap(),
            kind: "vllm".to_owned(),
            address: "unix:/run/http.sock".to_owned(),
            public_address: None,
            name: "m".to_owned(),
            model: Some("/models/m".to_owned()),
            sources: vec![KvEndpoints {
                events: "tcp://127.0.0.1:5557".to_owned(),
                bind: true,
                replay: "tcp://127.0.0.1:6557".to_owned(),
            }],
            media_dir: None,
            gpus: vec!["GPU-1f".to_owned()],
            pid: Some(7),
        };
        assert!(EngineFile::read(folder.path()).is_err(), "not there yet");
        file.write(folder.path()).unwrap();
        assert_eq!(EngineFile::read(folder.path()).unwrap(), file);
        // As one wrote it that knew of no GPUs.
        let text = fs::read_to_string(folder.path().join(ENGINE_FILE)).unwrap();
        let mut older: serde_json::Value = serde_json::from_str(&text).unwrap();
        let fields = older.as_object_mut().unwrap();
        assert!(fields.remove("gpus").is_some() && fields.remove("pid").is_some());
        fs::write(folder.path().join(ENGINE_FILE), older.to_string()).unwrap();
        let read = EngineFile::read(folder.path()).unwrap();
        assert_eq!((read.gpus, read.pid), (Vec::new(), None));
        file.version = 2;
        file.write(folder.path()).unwrap();
        let error = EngineFile::read(folder.path()).unwrap_err();
        assert_eq!(error.to_string(), "version 2 is not known");
    }
}
