//! The program as a shell or a unit sees it: what it prints, and its exit code.

use std::io::Write;
use std::process::{Command, Output};

pub(crate) fn kvlens(args: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kvlens"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("KVLENS_")) {
        command.env_remove(name);
    }
    let command = command.args(args).envs(environment.iter().copied());
    command
        .output()
        .expect("the program was built with the tests")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it writes text")
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file can be made");
    file.write_all(text.as_bytes())
        .expect("a temporary file can be written");
    file
}

#[test]
fn a_good_configuration_is_ok() {
    let file = file("[frontend]\nport = 9000\n");
    let path = file.path().to_str().unwrap();
    for (args, environment) in [
        (&["check-config"] as &[&str], &[] as &[(&str, &str)]),
        (&["check-config", "--config", path], &[]),
        (&["--config", path, "check-config"], &[]),
        (&["check-config"], &[("KVLENS_CONFIG", path)]),
        (&["check-config"], &[("KVLENS_ROUTER_MODE", "random")]),
    ] {
        let output = kvlens(args, environment);
        assert_eq!(text(&output.stderr), "", "{args:?}");
        assert_eq!(text(&output.stdout), "ok\n", "{args:?}");
        assert_eq!(output.status.code(), Some(0), "{args:?}");
    }
}

#[test]
fn a_bad_configuration_ends_with_78_and_a_line_for_each_fault() {
    let file = file("[frontend]\nprot = 1\n[router]\ntemperature = -1\n");
    let path = file.path().to_str().unwrap();
    let faults = format!(
        "kvlens: unknown key frontend.prot in file {path}; did you mean frontend.port?\n\
         kvlens: router.temperature is -1 in file {path}, but must be at least 0\n"
    );
    for action in ["check-config", "up"] {
        let output = kvlens(&[action, "--config", path], &[]);
        assert_eq!(text(&output.stderr), faults);
        assert_eq!(output.status.code(), Some(78));
    }
    for (variable, value, line) in [
        (
            "KVLENS_LOG_LEVEL",
            "kvlens=loud",
            "kvlens: log.level is \"kvlens=loud\"",
        ),
        (
            "KVLENS_MEDIA_ALLOW",
            "cdn.example, http://a/",
            "kvlens: media.allow entry \"http://a/\" is no name",
        ),
        (
            "KVLENS_MEDIA_TOTAL_SECS",
            "1e300",
            "kvlens: media.total_secs = 1",
        ),
    ] {
        for action in ["check-config", "up"] {
            let output = kvlens(&[action], &[(variable, value)]);
            let said = text(&output.stderr);
            assert!(said.starts_with(line), "{said}");
            assert_eq!(output.status.code(), Some(78), "{action}");
        }
    }
}

#[test]
fn the_reference_can_be_used_as_a_file() {
    let output = kvlens(&["check-config", "--reference"], &[]);
    assert_eq!(output.status.code(), Some(0));
    let file = file(&text(&output.stdout));
    let output = kvlens(
        &["check-config", "--config", file.path().to_str().unwrap()],
        &[],
    );
    assert_eq!(text(&output.stdout), "ok\n");
}

#[test]
fn the_version_shows_the_revision() {
    let output = kvlens(&["--version"], &[]);
    let line = text(&output.stdout);
    let revision = line
        .strip_prefix(concat!("kvlens ", env!("CARGO_PKG_VERSION"), " ("))
        .and_then(|rest| rest.strip_suffix(")\n"));
    assert!(
        revision.is_some_and(|revision| revision.len() >= 7),
        "{line}"
    );
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for args in [&[] as &[&str], &["upp"], &["up", "--prot", "1"]] {
        assert_eq!(kvlens(args, &[]).status.code(), Some(2), "{args:?}");
    }
}
