//! `[units]` and `[workers.NAME]`: what is refused in which words, and what an instance takes.

use std::io::Write;

use kvlens::config::instance::{Kind, Runtime};
use kvlens::config::units::Part;
use kvlens::config::{Config, Sources};
use tempfile::NamedTempFile;

use crate::cli::{kvlens, text};

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(text.as_bytes())
        .expect("a temporary file can be written");
    file
}

fn load(text: &str) -> Result<Config, Vec<String>> {
    let file = file(text);
    let path = file.path().display().to_string();
    let sources = Sources {
        file: Some(file.path().to_owned()),
        ..Sources::default()
    };
    Config::load(&sources).map_err(|error| {
        let shown = error.problems.iter().map(ToString::to_string);
        shown.map(|text| text.replace(&path, "FILE")).collect()
    })
}

#[test]
fn workers_are_named_in_tables() {
    let config = load(
        "[units]\nroles = [\"inference\"]\n[workers.b]\nengine = \"mock\"\n\
         [workers.a]\nmodel = \"/m\"\nruntime = \"podman\"\nimage = \"i\"\nranks = 2\n\
         labels = [\"fast\"]\n",
    )
    .unwrap();
    assert_eq!(config.units.roles, [Part::Inference]);
    let [a, b] = &config.instances()[..] else {
        panic!("there are two");
    };
    assert_eq!((a.worker.as_str(), b.worker.as_str()), ("a", "b"));
    assert_eq!(
        (a.config.engine, a.config.runtime),
        (Kind::Vllm, Runtime::Podman)
    );
    assert_eq!((a.config.ranks, b.config.ranks), (2, 1));
    assert_eq!(b.config.engine, Kind::Mock);
    assert_eq!(b.agent_listen.to_string(), "127.0.0.1:8201");
}

#[test]
fn what_a_host_cannot_run_is_told_in_a_sentence() {
    let mock = "engine = \"mock\"\n";
    for (text, expected) in [
        (
            format!("[workers.GPU_0]\n{mock}"),
            "[workers.GPU_0]: its name must be 1 to 63 of a-z, 0-9 and - (in file FILE)",
        ),
        (
            format!(
                "[workers.a]\n{mock}gpus = [\"0\", \"1\"]\n[workers.b]\n{mock}gpus = [\"1\"]\n"
            ),
            "workers.a.gpus and workers.b.gpus both have 1: each engine takes its GPU's memory for \
             itself (in file FILE)",
        ),
        (
            format!(
                "[workers.a]\n{mock}[workers.b]\n{mock}listen = \"0.0.0.0:8100\"\nkey_file = \"/k\"\n"
            ),
            "workers.b.listen is 0.0.0.0:8100, and workers.a.listen is 127.0.0.1:8100: two listeners \
             need two addresses (in file FILE)",
        ),
        (
            format!("[workers.a]\n{mock}agent_listen = \"127.0.0.1:2379\"\n"),
            "workers.a.agent_listen is 127.0.0.1:2379, and etcd for clients is 127.0.0.1:2379: two \
             listeners need two addresses (in file FILE)",
        ),
        (
            "[workers.a]\nmodel = \"/m\"\nruntime = \"podman\"\n".to_owned(),
            "workers.a.image is unset and its runtime is podman: name the image that podman runs (in \
             file FILE)",
        ),
        (
            "[workers.a]\nmodel = \"m\"\nruntime = \"podman\"\nimage = \"i\"\n".to_owned(),
            "workers.a.model is no absolute path and its runtime is podman, which is shown folders \
             alone (in file FILE)",
        ),
        (
            format!("[workers.a]\n{mock}runtime = \"podman\"\nimage = \"i\"\n"),
            "workers.a.runtime is podman and its engine is mock, which is in no image: take native \
             (in file FILE)",
        ),
        (
            "[workers.a]\n".to_owned(),
            "workers.a.model is unset and its engine is vllm: name the model's folder (in file FILE)",
        ),
        (
            "[workers.a]\nengine = \"command\"\n".to_owned(),
            "workers.a.args is empty and its engine is command: put the command line there (in file \
             FILE)",
        ),
        (
            format!("[workers.a]\n{mock}listen = \"10.0.0.5:8100\"\n"),
            "workers.a.listen is reachable from other hosts and its key_file is unset: anybody there \
             could ask the engine; name a key file or listen on 127.0.0.1 (in file FILE)",
        ),
        (
            format!("[workers.a]\n{mock}ranks = 0\n"),
            "workers.a.ranks is 0 in file FILE, but must be 1 to 1024",
        ),
        (
            format!("[workers.a]\n{mock}gpu = [\"0\"]\n"),
            "unknown key workers.a.gpu in file FILE; did you mean workers.a.gpus?",
        ),
        (
            "[units]\nrouter = \"A\"\n".to_owned(),
            "units.router must be 1 to 63 of a-z, 0-9 and - (in file FILE)",
        ),
    ] {
        assert_eq!(load(&text).unwrap_err(), [expected], "{text}");
    }
}

#[test]
fn an_instance_that_is_not_there_is_refused_for_good() {
    let file = file("[workers.a]\nengine = \"mock\"\n[workers.b]\nengine = \"mock\"\n");
    let path = file.path().to_str().unwrap();
    for role in ["engine", "worker"] {
        let output = kvlens(&[role, "--instance", "c", "--config", path], &[]);
        let said = text(&output.stderr);
        let expected = format!(
            "kvlens: {role}: there is no [workers.c] in file {path}; its workers are a, b\n"
        );
        assert_eq!(said, expected);
        assert_eq!(output.status.code(), Some(78));
        // What an instance says, flags do not.
        let output = kvlens(
            &[role, "--instance", "a", "--worker", "a", "--config", path],
            &[],
        );
        let said = text(&output.stderr);
        assert!(said.contains("cannot be used with"), "{said}");
    }
}
