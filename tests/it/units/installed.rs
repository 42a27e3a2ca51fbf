//! Installed below a prefix, and removed again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::cli::{kvlens, text};
use crate::units::{PROGRAMS, names, shown, units};

fn install(prefix: &Path) -> String {
    let words = ["install", "--prefix", shown(prefix)];
    units(&[&words[..], &PROGRAMS].concat())
}

fn uninstall(prefix: &Path, more: &[&str]) -> String {
    units(&[&["uninstall", "--prefix", shown(prefix)], more].concat())
}

/// Every file and link below a folder with what it says or leads to.
fn tree(folder: &Path) -> BTreeMap<PathBuf, String> {
    let mut tree = BTreeMap::new();
    for name in names(folder) {
        let path = folder.join(name);
        let kind = fs::symlink_metadata(&path)
            .expect("it is there")
            .file_type();
        if kind.is_dir() {
            tree.extend(self::tree(&path));
        } else if kind.is_symlink() {
            let to = fs::read_link(&path).expect("the link can be read");
            tree.insert(path, to.display().to_string());
        } else {
            tree.insert(
                path.clone(),
                fs::read_to_string(path).expect("the file can be read"),
            );
        }
    }
    tree
}

#[test]
fn a_second_install_changes_nothing_and_uninstall_leaves_nothing() {
    let prefix = tempfile::tempdir().unwrap();
    let first = install(prefix.path());
    let once = tree(prefix.path());
    assert!(
        first.contains("systemctl enable --now kvlens.target"),
        "{first}"
    );
    assert!(first.contains("No worker is planned"), "{first}");

    let second = install(prefix.path());
    assert_eq!(tree(prefix.path()), once);
    let done = |verb: &str| second.lines().filter(|line| line.starts_with(verb)).count();
    assert_eq!(
        (done("written"), done("linked"), done("made")),
        (0, 0, 0),
        "{second}"
    );
    assert_eq!(done("unchanged"), once.len(), "{second}");

    for (path, mode) in [
        ("etc/kvlens", 0o755),
        ("etc/kvlens/kvlens.toml", 0o644),
        ("etc/kvlens/nats.conf", 0o600),
        ("etc/kvlens/credentials/frontend", 0o700),
        ("etc/systemd/system/kvlens-engine@.service", 0o644),
        ("etc/sysusers.d/kvlens.conf", 0o644),
    ] {
        let found = fs::metadata(prefix.path().join(path)).unwrap();
        assert_eq!(found.permissions().mode() & 0o777, mode, "{path}");
    }

    // What units keep where they ran.
    for path in [
        "var/lib/kvlens/gpu-0/ranks",
        "var/cache/kvlens-engine/gpu-0/kernel",
    ] {
        let path = prefix.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "kept").unwrap();
    }
    let said = uninstall(prefix.path(), &[]);
    assert!(said.contains("\nWhat stays: the program, /"), "{said}");
    assert_eq!(tree(prefix.path()), BTreeMap::new());
    assert!(!prefix.path().join("etc/kvlens").exists());
    assert_eq!(
        uninstall(prefix.path(), &[]),
        "nothing of kvlens is installed there\n"
    );
}

#[test]
fn what_an_operator_wrote_is_kept_until_it_is_purged() {
    let prefix = tempfile::tempdir().unwrap();
    install(prefix.path());
    let at = |path: &str| prefix.path().join(path);
    let own = [
        (
            "etc/kvlens/kvlens.toml",
            "[workers.mock-0]\nengine = \"mock\"\n",
        ),
        ("etc/kvlens/nats.conf", "listen: \"127.0.0.1:4222\"\n"),
        ("etc/kvlens/credentials/frontend/tenants", "name:key\n"),
        (
            "etc/systemd/system/kvlens-router.service.d/own.conf",
            "[Service]\n",
        ),
    ];
    for (path, text) in own {
        fs::create_dir_all(at(path).parent().unwrap()).unwrap();
        fs::write(at(path), text).unwrap();
    }
    let kept = || -> BTreeMap<_, _> {
        let own = own.iter();
        own.map(|(path, text)| (at(path), (*text).to_owned()))
            .collect()
    };
    let said = install(prefix.path());
    assert!(!said.contains("No worker is planned"), "{said}");
    let found = tree(prefix.path());
    for (path, text) in kept() {
        assert_eq!(found.get(&path), Some(&text), "{}", path.display());
    }
    let said = uninstall(prefix.path(), &[]);
    assert_eq!(tree(prefix.path()), kept());
    for path in [
        own[0].0,
        own[1].0,
        "etc/kvlens/credentials/frontend",
        own[3].0,
    ] {
        let path = path.trim_end_matches("/own.conf");
        let line = format!("kept      {}", at(path).display());
        assert!(said.lines().any(|found| found == line), "{line}\n{said}");
    }
    uninstall(prefix.path(), &["--purge"]);
    assert_eq!(tree(prefix.path()), BTreeMap::new());
}

#[test]
fn a_worker_that_is_gone_from_the_configuration_is_no_longer_wanted() {
    let prefix = tempfile::tempdir().unwrap();
    let config = prefix.path().join("etc/kvlens/kvlens.toml");
    let wants = prefix.path().join("etc/systemd/system/kvlens.target.wants");
    fs::create_dir_all(config.parent().unwrap()).unwrap();
    let workers = |names: &[&str]| {
        let roles = "[units]\nroles = [\"inference\"]\n".to_owned();
        let worker = |name: &&str| format!("[workers.{name}]\nengine = \"mock\"\n");
        fs::write(
            &config,
            roles + &names.iter().map(worker).collect::<String>(),
        )
        .unwrap();
    };
    workers(&["a-0", "b-1"]);
    install(prefix.path());
    assert_eq!(names(&wants).len(), 4);
    let enabled = prefix
        .path()
        .join("etc/systemd/system/multi-user.target.wants");
    fs::create_dir(&enabled).unwrap();
    symlink("../kvlens.target", enabled.join("kvlens.target")).unwrap();
    symlink("../other.service", wants.join("other.service")).unwrap();
    workers(&["b-1"]);
    let said = install(prefix.path());
    let left = [
        "kvlens-engine@b-1.service",
        "kvlens-worker@b-1.service",
        "other.service",
    ];
    assert_eq!(names(&wants), left);
    let steps = [
        "`curl -X POST http://127.0.0.1:8200/kvlens/v1/deregister` first",
        "`systemctl stop kvlens-engine@a-0.service kvlens-worker@a-0.service`",
        "Next: `systemctl restart kvlens.target`",
    ];
    let places = steps.map(|step| said.find(step).unwrap_or_else(|| panic!("{step}\n{said}")));
    assert!(places.is_sorted(), "{said}");
    assert!(install(prefix.path()).contains("The units are as they were"));
    uninstall(prefix.path(), &["--purge"]);
    assert_eq!(names(&wants), ["other.service"]);
    assert!(names(&enabled).is_empty());
}

#[test]
fn where_nothing_is_installed_nothing_is_removed() {
    let prefix = tempfile::tempdir().unwrap();
    for path in [
        "var/lib/kvlens/own",
        "var/cache/kvlens/own",
        "etc/kvlens/nats.conf",
    ] {
        let path = prefix.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "own").unwrap();
    }
    let before = tree(prefix.path());
    let said = uninstall(prefix.path(), &[]);
    let first = said.lines().next();
    assert_eq!(first, Some("nothing of kvlens is installed there"));
    assert_eq!(tree(prefix.path()), before);
    install(prefix.path());
    uninstall(prefix.path(), &["--purge"]);
    let left: Vec<_> = tree(prefix.path()).into_keys().collect();
    assert_eq!(left, [prefix.path().join("var/cache/kvlens/own")]);
}

#[test]
fn what_was_there_before_is_closed_and_never_written_through() {
    let prefix = tempfile::tempdir().unwrap();
    let at = |path: &str| prefix.path().join(path);
    let (credentials, own) = (at("etc/kvlens/credentials/nats"), at("own"));
    fs::create_dir_all(&credentials).unwrap();
    fs::set_permissions(&credentials, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(&own, "own").unwrap();
    fs::create_dir_all(at("etc/systemd/system")).unwrap();
    for path in ["kvlens-etcd.service.new", "kvlens-nats.service"] {
        symlink(&own, at("etc/systemd/system").join(path)).unwrap();
    }
    let said = install(prefix.path());
    assert_eq!(fs::read_to_string(&own).unwrap(), "own");
    for path in ["kvlens-etcd.service", "kvlens-nats.service"] {
        let kind = fs::symlink_metadata(at("etc/systemd/system").join(path)).unwrap();
        assert!(kind.is_file(), "{path}");
    }
    let mode = fs::metadata(&credentials).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    for (verb, path) in [
        ("closed", &credentials),
        ("replaced", &at("etc/systemd/system/kvlens-nats.service")),
        ("written", &at("etc/systemd/system/kvlens-etcd.service")),
    ] {
        let line = format!("{verb:<9} {}", path.display());
        assert!(said.lines().any(|found| found == line), "{line}\n{said}");
    }
}

#[test]
fn units_are_installed_from_their_own_configuration_alone() {
    let prefix = tempfile::tempdir().unwrap();
    let other = prefix.path().join("other.toml");
    fs::write(&other, "[units]\nroles = []\n").unwrap();
    for action in ["install", "uninstall"] {
        let root = ["units", action, "--prefix", shown(prefix.path())];
        let named = ["--config", shown(&other)];
        let output = kvlens(&[&root[..], &named].concat(), &[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(
            said.contains("units read /etc/kvlens/kvlens.toml"),
            "{said}"
        );
    }
    assert!(!prefix.path().join("etc").exists());
    let root = ["units", "install", "--prefix", shown(prefix.path())];
    let words = [&root[..], &PROGRAMS].concat();
    let output = kvlens(&words, &[("KVLENS_CONFIG", shown(&other))]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let wants = prefix.path().join("etc/systemd/system/kvlens.target.wants");
    assert!(names(&wants).contains(&"kvlens-router.service".to_owned()));
}

#[test]
fn what_stands_in_the_way_is_named_with_what_to_do() {
    let prefix = tempfile::tempdir().unwrap();
    let root = shown(prefix.path());
    fs::write(prefix.path().join("etc"), "a file").unwrap();
    let nowhere = [("PATH", "/nonexistent")];
    let folder = prefix.path().join("units");
    for (words, environment, code, parts) in [
        (
            &["install", "--prefix", root] as &[&str],
            &[] as &[(&str, &str)],
            1,
            &["cannot make folder", "etc/kvlens"] as &[&str],
        ),
        (
            &[
                "render",
                "--to",
                shown(&folder),
                "--config",
                "/nonexistent.toml",
            ],
            &nowhere,
            78,
            &["cannot read configuration file /nonexistent.toml"],
        ),
        (
            &["render", "--to", shown(&folder), "--kvlens", "/nonexistent"],
            &nowhere,
            78,
            &["/etc/kvlens/kvlens.toml", "run `kvlens units install`"],
        ),
        (
            &["status", "--config", "/dev/null"],
            &[],
            1,
            &["this host runs no systemd"],
        ),
        (
            &["install"],
            &[],
            1,
            &["this host runs no systemd", "--prefix"],
        ),
    ] {
        // Where systemd runs nothing may be installed, and a real table is no error.
        let is_about_systemd = parts[0].contains("no systemd");
        if is_about_systemd && Path::new("/run/systemd/system").is_dir() {
            continue;
        }
        let words: Vec<_> = ["units"].iter().chain(words).copied().collect();
        let output = kvlens(&words, environment);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{words:?} {said}");
        for part in parts {
            assert!(said.contains(part), "{words:?}: {part}\n{said}");
        }
    }
}
