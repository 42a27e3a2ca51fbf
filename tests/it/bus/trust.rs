use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kvlens::bus::Bus;
use kvlens::bus::standing::BusState;
use kvlens::config::nats::NatsConfig;

use crate::bus::server::Server;
use crate::end_to_end::stack::until;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden/tls")
        .join(name)
}

fn private(folder: &Path, name: &str, text: &str) -> Option<PathBuf> {
    let path = folder.join(name);
    fs::write(&path, text).expect("the folder can be written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("it is ours");
    Some(path)
}

/// Waits until the bus is away for a reason that has `part` in it.
async fn until_away(config: &NatsConfig, part: &str) {
    let bus = Bus::connect(config, "test")
        .await
        .expect("the files can be read");
    let state = bus.state();
    let says = async || match state.now() {
        BusState::Up => false,
        BusState::Away { cause } => cause.contains(part),
    };
    until(part, says).await;
}

async fn until_up(config: &NatsConfig) {
    let bus = Bus::connect(config, "test")
        .await
        .expect("the files can be read");
    until("the bus is up", async || bus.is_up()).await;
}

#[tokio::test]
async fn a_wrong_password_is_named() {
    let rules = "authorization { users = [ { user: a, password: right } ] }";
    let server = Server::configured(rules).await;
    let folder = tempfile::tempdir().unwrap();
    let with = |password: &str| NatsConfig {
        user: Some("a".to_owned()),
        password_file: private(folder.path(), password, password),
        ..server.config()
    };
    until_away(&with("wrong"), "does not take our user, password or nkey").await;
    until_up(&with("right")).await;
    let open = NatsConfig {
        password_file: Some(golden("ca.pem")),
        ..with("right")
    };
    let error = Bus::connect(&open, "test").await.unwrap_err().to_string();
    assert!(
        error.contains("password file") && error.contains("mode 644"),
        "{error}"
    );
}

#[tokio::test]
async fn certificates_are_checked_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let key = fs::read_to_string(golden("member.key.pem")).unwrap();
    let key = private(folder.path(), "key", &key).expect("it was written");
    let rules = |certificate: &str, verify: bool| {
        let (certificate, ca) = (golden(certificate), golden("ca.pem"));
        let files = [&certificate, &key, &ca].map(|path| path.display().to_string());
        let [certificate, key, ca] = files;
        format!(
            "tls {{ cert_file: \"{certificate}\", key_file: \"{key}\", ca_file: \"{ca}\", \
             verify: {verify} }}"
        )
    };
    let trusting = |server: &Server| NatsConfig {
        ca_file: Some(golden("ca.pem")),
        ..server.config()
    };
    let showing = |server: &Server, certificate: &str| NatsConfig {
        cert_file: Some(golden(certificate)),
        cert_key_file: Some(key.clone()),
        ..trusting(server)
    };
    let expired = Server::configured(&rules("member_expired.pem", false)).await;
    until_away(&trusting(&expired), "not accepted").await;
    let server = Server::configured(&rules("member.pem", false)).await;
    until_up(&trusting(&server)).await;
    let mutual = Server::configured(&rules("member.pem", true)).await;
    until_up(&showing(&mutual, "member.pem")).await;
    let refused = showing(&mutual, "member_expired.pem");
    let bus = Bus::connect(&refused, "test")
        .await
        .expect("the files can be read");
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    assert!(!bus.is_up(), "an expired certificate lets nobody in");
}
