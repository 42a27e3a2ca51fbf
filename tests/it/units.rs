//! `kvlens units`: what is planned, written and removed, as a shell and systemd's own checks see it.

mod configuration;
mod credentials;
mod installed;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cli::{kvlens, text};

/// A program that is everywhere, in place of those that units start.
const PROGRAM: &str = "/bin/sh";

/// The most that `systemd-analyze security` may say of each unit, times ten.
const EXPOSURE_MAX: [(&str, u32); 6] = [
    ("kvlens-frontend.service", 12),
    ("kvlens-router.service", 12),
    ("kvlens-etcd.service", 15),
    ("kvlens-nats.service", 15),
    ("kvlens-worker@.service", 18),
    ("kvlens-engine@.service", 18),
];

fn golden(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    root.join("tests/golden/units").join(name)
}

/// Runs `kvlens units` with these words, as it must succeed, and gives back what it prints.
fn units(words: &[&str]) -> String {
    let words: Vec<_> = ["units"].iter().chain(words).copied().collect();
    let output = kvlens(&words, &[]);
    assert_eq!(text(&output.stderr), "", "{words:?}");
    assert_eq!(output.status.code(), Some(0), "{words:?}");
    text(&output.stdout)
}

/// The flags that name the programs.
const PROGRAMS: [&str; 6] = [
    "--kvlens",
    PROGRAM,
    "--etcd",
    PROGRAM,
    "--nats-server",
    PROGRAM,
];

fn shown(path: &Path) -> &str {
    path.to_str().expect("the path is text")
}

/// Renders the golden host's units.
fn rendered() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let config = golden("kvlens.toml");
    let words = [
        "render",
        "--to",
        shown(folder.path()),
        "--config",
        shown(&config),
    ];
    units(&[&words[..], &PROGRAMS].concat());
    folder
}

/// The names in a folder, sorted.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let name = |entry: std::io::Result<fs::DirEntry>| {
        let entry = entry.expect("the entry can be read");
        entry.file_name().to_string_lossy().into_owned()
    };
    let mut names: Vec<_> = entries.map(name).collect();
    names.sort();
    names
}

/// Runs systemd-analyze, and gives back its exit code and all that it prints.
fn analyze(args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("systemd-analyze").args(args).output();
    let output = output.expect("systemd-analyze is installed (Debian: systemd)");
    let said = text(&output.stdout) + &text(&output.stderr);
    (output.status.code(), said)
}

#[test]
fn a_host_is_planned_from_its_configuration_alone() {
    let config = golden("kvlens.toml");
    let plan = units(&["plan", "--config", shown(&config)]);
    let expected = fs::read_to_string(golden("plan.json")).unwrap();
    assert_eq!(
        plan, expected,
        "kvlens units plan > plan.json makes it again"
    );
}

#[test]
fn systemd_finds_nothing_to_say_of_the_units() {
    let folder = rendered();
    let is_unit = |name: &String| {
        let ends = [".service", ".socket", ".target"];
        ends.iter().any(|end| name.ends_with(end))
    };
    let found: Vec<_> = names(folder.path()).into_iter().filter(is_unit).collect();
    assert_eq!(found.len(), 10, "{found:?}");
    let paths: Vec<_> = found.iter().map(|name| folder.path().join(name)).collect();
    let mut args = vec!["verify", "--man=no", "--recursive-errors=no"];
    args.extend(paths.iter().map(|path| shown(path)));
    // Its exit code is no guide: an unknown key is only told of.
    assert_eq!(analyze(&args).1, "");
}

#[test]
fn units_are_walled_in() {
    let folder = rendered();
    for (name, most) in EXPOSURE_MAX {
        let path = folder.path().join(name);
        let most = format!("--threshold={most}");
        let (code, said) = analyze(&["security", "--offline=true", &most, shown(&path)]);
        let last = said.lines().last().unwrap_or_default();
        assert!(last.contains("Overall exposure level"), "{said}");
        assert_eq!(code, Some(0), "{name} {most}: {last}");
    }
}

/// What of a line still stands between @, as `@kvlens@`.
fn placeholder(line: &str) -> Option<&str> {
    let parts: Vec<_> = line.split('@').collect();
    let between = parts.get(1..parts.len() - 1).unwrap_or_default();
    let is_name = |part: &&&str| {
        let legal = |b: u8| b.is_ascii_lowercase() || b == b'_';
        !part.is_empty() && part.bytes().all(legal)
    };
    between.iter().find(is_name).copied()
}

#[test]
fn units_are_filled_in_for_the_host() {
    let folder = rendered();
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
    for name in names(folder.path()) {
        let path = folder.path().join(&name);
        if path.is_file() && name != "nats-rack.conf" {
            let text = read(&name);
            let left = text.lines().find_map(placeholder);
            assert_eq!(left, None, "{name}");
        }
    }
    for (name, line) in [
        (
            "kvlens-router.service",
            "ExecStart=/bin/sh router --config /etc/kvlens/kvlens.toml",
        ),
        ("kvlens-frontend.socket", "ListenStream=127.0.0.1:9000"),
        (
            "kvlens-frontend-admin.socket",
            "ListenStream=127.0.0.1:9001",
        ),
        // 5 s to settle, 30 to drain, and 5.
        ("kvlens-frontend.service", "TimeoutStopSec=40"),
        // 30 s to drain, 10 for the engine to end, and 5.
        ("kvlens-engine@.service", "TimeoutStopSec=45"),
        ("kvlens-engine-podman@.service", "TimeoutStopSec=45"),
        ("kvlens-etcd.service", "ExecStart=/bin/sh"),
    ] {
        let text = read(name);
        assert!(
            text.lines().any(|found| found == line),
            "{name}: {line}\n{text}"
        );
    }
}

#[test]
fn the_target_wants_what_is_planned() {
    let folder = rendered();
    let wants = folder.path().join("kvlens.target.wants");
    let links: Vec<_> = names(&wants)
        .iter()
        .map(|name| {
            let to = fs::read_link(wants.join(name)).unwrap();
            assert!(wants.join(&to).is_file(), "{name} leads nowhere");
            format!("{name} {}", to.display())
        })
        .collect();
    assert_eq!(
        links,
        [
            "kvlens-engine-podman@gpu-1.service ../kvlens-engine-podman@.service",
            "kvlens-engine@gpu-0.service ../kvlens-engine@.service",
            "kvlens-engine@mock-2.service ../kvlens-engine@.service",
            "kvlens-etcd.service ../kvlens-etcd.service",
            "kvlens-frontend-admin.socket ../kvlens-frontend-admin.socket",
            "kvlens-frontend.service ../kvlens-frontend.service",
            "kvlens-frontend.socket ../kvlens-frontend.socket",
            "kvlens-nats.service ../kvlens-nats.service",
            "kvlens-router.service ../kvlens-router.service",
            "kvlens-worker@gpu-0.service ../kvlens-worker@.service",
            "kvlens-worker@gpu-1.service ../kvlens-worker@.service",
            "kvlens-worker@mock-2.service ../kvlens-worker@.service",
        ]
    );
}

/// What systemd 252 does not know would be passed over with a word in the log.
#[test]
fn an_unknown_key_would_be_seen() {
    let folder = rendered();
    let path = folder.path().join("kvlens-router.service");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace("RestartSec=", "RestartSmooth=")).unwrap();
    let (_, said) = analyze(&["verify", "--man=no", "--recursive-errors=no", shown(&path)]);
    assert!(said.contains("RestartSmooth"), "{said}");
}
