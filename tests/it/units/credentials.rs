//! Secrets that systemd gives to a unit: missing, elsewhere, or none at all.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::cli::{kvlens, text};
use crate::units::shown;

const NATS: [(&str, &str); 4] = [
    ("KVLENS_DISCOVERY_WORKERS", "http://127.0.0.1:1"),
    ("KVLENS_NATS_SERVERS", "nats://127.0.0.1:1"),
    ("KVLENS_NATS_USER", "router-a"),
    ("KVLENS_NATS_PASSWORD_FILE", "credential:nats"),
];

/// Runs a router as a unit whose credentials are in `folder`, and gives back what it says at its end.
fn router(folder: Option<&Path>) -> String {
    let given = folder.map(|folder| ("CREDENTIALS_DIRECTORY", shown(folder)));
    let environment: Vec<_> = NATS.into_iter().chain(given).collect();
    let admin = ["router", "--id", "a", "--admin", "127.0.0.1:0"];
    let output = kvlens(&admin, &environment);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    text(&output.stderr)
}

#[test]
fn a_credential_that_is_not_there_is_named_with_its_source() {
    let folder = tempfile::tempdir().unwrap();
    let given = folder.path().join("kvlens-router.service");
    fs::create_dir(&given).unwrap();
    let said = router(Some(&given));
    let expected = "password file credential:nats is not among this unit's credentials: write \
                    /etc/kvlens/credentials/router/nats, mode 600, and start the unit again";
    assert!(said.contains(expected), "{said}");
}

#[test]
fn outside_of_a_unit_there_are_none() {
    let said = router(None);
    assert!(said.contains("run it as a unit"), "{said}");
}

#[test]
fn one_that_nobody_can_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let given = folder.path().join("kvlens-frontend.service");
    // A folder is no file of keys for anybody, root included.
    let tenants = given.join("kvlens_tenants");
    fs::create_dir_all(&tenants).unwrap();
    fs::set_permissions(tenants, fs::Permissions::from_mode(0o700)).unwrap();
    let environment = [
        ("CREDENTIALS_DIRECTORY", shown(&given)),
        ("KVLENS_DISCOVERY_WORKERS", "http://127.0.0.1:1"),
        ("KVLENS_FRONTEND_KEY_FILE", "credential:tenants"),
    ];
    let output = kvlens(&["frontend", "--port", "0"], &environment);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(
        said.contains("cannot read key file") && said.contains("kvlens_tenants"),
        "{said}"
    );
}

#[test]
fn a_configuration_is_checked_without_the_units_secrets() {
    let environment = [
        ("KVLENS_FRONTEND_KEY_FILE", "credential:tenants"),
        ("KVLENS_CLUSTER_HASH_KEY_FILE", "credential:cluster"),
    ];
    let output = kvlens(&["check-config"], &environment);
    assert_eq!(text(&output.stdout), "ok\n", "{output:?}");
}
