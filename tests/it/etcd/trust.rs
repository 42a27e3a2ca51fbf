//! Who may use etcd, and whether it is etcd: passwords and certificates, and the faults that are named.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use kvlens::config::etcd::EtcdConfig;

use crate::etcd::clients::{Agent, Follower, config, record};
use crate::etcd::server::{Protection, Server, golden_tls};

/// A copy of a golden file of a mode of its own.
fn private(folder: &Path, name: &str, mode: u32) -> PathBuf {
    let copy = folder.join(format!("{mode:o}-{name}"));
    fs::copy(golden_tls(name), &copy).expect("the folder can be written");
    fs::set_permissions(&copy, fs::Permissions::from_mode(mode)).expect("it is ours");
    copy
}

#[tokio::test]
async fn a_wrong_password_is_named() {
    let server = Server::start(Protection::Plain).await;
    let mut client = server.client().await;
    client.user_add("root", "secret", None).await.unwrap();
    client.role_add("root").await.unwrap();
    client.user_grant_role("root", "root").await.unwrap();
    client.user_add("nobody", "secret", None).await.unwrap();
    client.auth_enable().await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("password");
    let write = |text: &str, mode: u32| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    };
    let with_user = |user: &str| EtcdConfig {
        user: Some(user.to_owned()),
        password_file: Some(file.clone()),
        ..config(&server.url())
    };
    let refused = "does not take our user or password";
    let mut follower = Follower::start(config(&server.url()));
    follower.plane.until_down(refused).await;

    write("wrong\n", 0o600);
    let mut follower = Follower::start(with_user("root"));
    let mut agent = Agent::start(with_user("root"), record("gpu-0", "http://a:1", 1));
    follower.plane.until_down(refused).await;
    agent.plane.until_down("authentication failed").await;
    write("secret\n", 0o644);
    let named = format!("etcd password file {} has mode 644", file.display());
    follower.plane.until_down(&named).await;
    // The file is read again with each try.
    write("secret\nof etcd\n", 0o600);
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    agent.plane.until_up().await;

    let mut follower = Follower::start(with_user("nobody"));
    follower
        .plane
        .until_down("does not let our user do this")
        .await;
}

#[tokio::test]
async fn certificates_are_checked_on_both_sides() {
    let folder = tempfile::tempdir().unwrap();
    let private = |name: &str, mode| Some(private(folder.path(), name, mode));
    let trusting = |server: &Server| EtcdConfig {
        ca_file: Some(golden_tls("ca.pem")),
        ..config(&server.url())
    };
    let showing = |server: &Server, certificate: &str, mode| EtcdConfig {
        cert_file: Some(golden_tls(certificate)),
        cert_key_file: private("member.key.pem", mode),
        ..trusting(server)
    };
    let expired = Server::start(Protection::Tls("member_expired.pem")).await;
    let mutual = Server::start(Protection::MutualTls("member.pem")).await;
    let not_accepted = "certificates between us and etcd";
    for (config, part) in [
        (trusting(&expired), not_accepted),
        (
            trusting(&expired),
            "invalid peer certificate: certificate expired",
        ),
        (config(&mutual.url()), "UnknownIssuer"),
        (showing(&mutual, "member_expired.pem", 0o600), not_accepted),
        (trusting(&mutual), "received fatal alert"),
        (showing(&mutual, "member.pem", 0o604), "has mode 604"),
        (
            showing(&mutual, "README.md", 0o600),
            "README.md has none in PEM form",
        ),
    ] {
        let mut follower = Follower::start(config);
        follower.plane.until_down(part).await;
    }
    let config = showing(&mutual, "member.pem", 0o600);
    let mut follower = Follower::start(config.clone());
    let mut agent = Agent::start(config, record("gpu-0", "http://a:1", 1));
    follower
        .until(|follower| follower.names() == ["gpu-0"])
        .await;
    agent.plane.until_up().await;
}
