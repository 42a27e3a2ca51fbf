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
        "[units]\nroles = [\"inference\"]\n[workers.b-1]\nengine = \"mock\"\n\
         [workers.a]\nlisten = \"127.0.0.1:1\"\nagent_listen = \"127.0.0.1:2\"\nmodel = \"/m\"\nruntime = \"podman\"\nimage = \"i\"\nranks = 2\n\
         labels = [\"fast\"]\n",
    )
    .unwrap();
    assert_eq!(config.units.roles, [Part::Inference]);
    let [a, b] = &config.instances()[..] else {
        panic!("there are two");
    };
    assert_eq!((a.worker.as_str(), b.worker.as_str()), ("a", "b-1"));
    assert_eq!(
        (a.config.engine, a.config.runtime),
        (Kind::Vllm, Runtime::Podman)
    );
    assert_eq!((a.config.ranks, b.config.ranks), (2, 1));
    assert_eq!(b.config.engine, Kind::Mock);
    assert_eq!(a.agent_listen.to_string(), "127.0.0.1:2");
    assert_eq!(b.listen.to_string(), "127.0.0.1:8101");
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
                "[workers.a-0]\n{mock}gpus = [\"0\", \"1\"]\n[workers.b-1]\n{mock}gpus = [\"1\"]\n"
            ),
            "workers.a-0.gpus and workers.b-1.gpus both have 1: each engine takes its GPU's memory for \
             itself (in file FILE)",
        ),
        (
            format!("[workers.a-0]\n{mock}[workers.b-1]\n{mock}listen = \"127.0.0.1:8100\"\n"),
            "workers.b-1.listen is 127.0.0.1:8100, and workers.a-0.listen is 127.0.0.1:8100: two \
             listeners need two addresses (in file FILE)",
        ),
        (
            format!("[workers.a-0]\n{mock}agent_listen = \"127.0.0.1:2379\"\n"),
            "workers.a-0.agent_listen is 127.0.0.1:2379, and etcd for clients is 127.0.0.1:2379: two \
             listeners need two addresses (in file FILE)",
        ),
        (
            "[workers.a-0]\nmodel = \"/m\"\nruntime = \"podman\"\n".to_owned(),
            "workers.a-0.image is unset and its runtime is podman: name the image that podman runs (in \
             file FILE)",
        ),
        (
            "[workers.a-0]\nmodel = \"m\"\nruntime = \"podman\"\nimage = \"i\"\n".to_owned(),
            "workers.a-0.model is no absolute path and its runtime is podman, which is shown folders \
             alone (in file FILE)",
        ),
        (
            format!("[workers.a-0]\n{mock}runtime = \"podman\"\nimage = \"i\"\n"),
            "workers.a-0.runtime is podman and its engine is mock, which is in no image: take native \
             (in file FILE)",
        ),
        (
            "[workers.a-0]\n".to_owned(),
            "workers.a-0.model is unset and its engine is vllm: name the model's folder (in file FILE)",
        ),
        (
            "[workers.a-0]\nengine = \"command\"\n".to_owned(),
            "workers.a-0.args is empty and its engine is command: put the command line there (in file \
             FILE)",
        ),
        (
            format!("[workers.a-0]\n{mock}listen = \"10.0.0.5:8100\"\n"),
            "workers.a-0.listen is reachable from other hosts and its key_file is unset: anybody there \
             could ask the engine; name a key file or listen on 127.0.0.1 (in file FILE)",
        ),
        (
            format!("[workers.a-0]\n{mock}ranks = 0\n"),
            "workers.a-0.ranks is 0 in file FILE, but must be 1 to 1024",
        ),
        (
            format!("[workers.a-0]\n{mock}gpu = [\"0\"]\n"),
            "unknown key workers.a-0.gpu in file FILE; did you mean workers.a-0.gpus?",
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
fn names_that_give_no_ports_of_their_own_need_them_told() {
    let mock = "engine = \"mock\"\n";
    let number = "is unset, and the name does not end in a number of 0 to 99, which would give its port: \
                  set it (in file FILE)";
    let same = "after the number at the end of the names: set one of them (in file FILE)";
    for (text, expected) in [
        (
            format!("[workers.blue]\n{mock}"),
            vec![
                format!("workers.blue.listen {number}"),
                format!("workers.blue.agent_listen {number}"),
            ],
        ),
        (
            format!("[workers.gpu-100]\n{mock}listen = \"127.0.0.1:1\"\n"),
            vec![format!("workers.gpu-100.agent_listen {number}")],
        ),
        (
            format!("[workers.a-1]\n{mock}[workers.b-1]\n{mock}"),
            vec![
                format!(
                    "workers.a-1.listen and workers.b-1.listen are both 127.0.0.1:8101, {same}"
                ),
                format!(
                    "workers.a-1.agent_listen and workers.b-1.agent_listen are both 127.0.0.1:8201, \
                     {same}"
                ),
            ],
        ),
    ] {
        assert_eq!(load(&text).unwrap_err(), expected, "{text}");
    }
}

/// A worker's ports stay what they are, whoever else comes and goes.
#[test]
fn a_worker_beside_others_has_the_ports_that_it_has_alone() {
    let ports = |names: &[&str]| {
        let worker = |name: &&str| format!("[workers.{name}]\nengine = \"mock\"\n");
        let config = load(&names.iter().map(worker).collect::<String>()).unwrap();
        let own = config.instances().into_iter();
        let own = own.filter(|one| one.worker.as_str() == "gpu-1");
        own.map(|one| (one.listen, one.agent_listen))
            .collect::<Vec<_>>()
    };
    let alone = ports(&["gpu-1"]);
    assert_eq!(alone.len(), 1);
    assert_eq!(ports(&["a-7", "gpu-0", "gpu-1"]), alone);
}

#[test]
fn listeners_for_others_have_keys_and_an_address() {
    let keys = "[worker]\nkey_file = \"/k\"\n";
    let open = "is reachable from other hosts and worker.key_file is unset: anybody there could take \
                the worker out; name a key file or listen on 127.0.0.1 (in file FILE)";
    let every = "is every address of this host, so that nobody can be told which: name one";
    let row =
        |head: &str, field: &str| format!("{head}[workers.a-0]\nengine = \"mock\"\n{field}\n");
    for (text, expected) in [
        (
            row("", "agent_listen = \"10.0.0.5:8200\""),
            format!("workers.a-0.agent_listen {open}"),
        ),
        (
            row(keys, "agent_listen = \"0.0.0.0:8200\""),
            format!(
                "workers.a-0.agent_listen {every}, or say with agent_advertise where others reach it \
                 (in file FILE)"
            ),
        ),
        (
            row(keys, "listen = \"[::]:8100\"\nkey_file = \"/k\""),
            format!("workers.a-0.listen {every} (in file FILE)"),
        ),
    ] {
        assert_eq!(load(&text).unwrap_err(), [expected], "{text}");
    }
    let told = "advertise = \"http://10.0.0.5:8200\"\n";
    for text in [
        row(keys, "agent_listen = \"10.0.0.5:8200\""),
        row(&format!("{keys}{told}"), "agent_listen = \"0.0.0.0:8200\""),
        row(
            keys,
            &format!("agent_listen = \"0.0.0.0:8200\"\nagent_{told}"),
        ),
    ] {
        assert!(load(&text).is_ok(), "{text}");
    }
}

#[test]
fn an_instance_that_is_not_there_is_refused_for_good() {
    let file = file("[workers.a-0]\nengine = \"mock\"\n[workers.b-1]\nengine = \"mock\"\n");
    let path = file.path().to_str().unwrap();
    for role in ["engine", "worker"] {
        let output = kvlens(&[role, "--instance", "c", "--config", path], &[]);
        let said = text(&output.stderr);
        let expected = format!(
            "kvlens: {role}: there is no [workers.c] in file {path}; its workers are a-0, b-1\n"
        );
        assert_eq!(said, expected);
        assert_eq!(output.status.code(), Some(78));
        // What an instance says, flags do not.
        let output = kvlens(
            &[
                role,
                "--instance",
                "a-0",
                "--worker",
                "a-0",
                "--config",
                path,
            ],
            &[],
        );
        let said = text(&output.stderr);
        assert!(said.contains("cannot be used with"), "{said}");
    }
}
