//! The house rules that a compiler does not know: which module may import which, what pure modules
//! must not touch, and where each outside crate is named.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Modules that compute values from values.
const PURE: [&str; 9] = [
    "id", "openai", "vision", "prompt", "block", "ledger", "index", "health", "select",
];

/// What a pure module must not name: I/O, clocks, tasks, logs.
const IMPURE: [&str; 14] = [
    "async fn",
    "async move",
    ".await",
    "tokio",
    "tracing",
    "std::env",
    "std::fs",
    "std::io::stdout",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::thread",
    "Instant",
    "SystemTime",
];

/// Each outside crate that has a room of its own, and the rooms.
const ROOMS: [(&str, &[&str]); 17] = [
    ("async_nats", &["bus"]),
    ("axum", &["http"]),
    ("etcd_client", &["discovery/etcd"]),
    ("figment", &["config"]),
    ("hyper::body", &["dispatch"]),
    ("hyper::server", &["http"]),
    ("hyper_util::server", &["http"]),
    ("hyper_util::client", &["dispatch"]),
    ("image", &["media", "mock"]),
    ("minijinja", &["model", "prompt"]),
    ("nvml_wrapper", &["gpu/nvml"]),
    ("prometheus_client", &["telemetry"]),
    ("reqwest", &["media"]),
    ("systemd", &["lifecycle"]),
    ("tokenizers", &["model", "prompt"]),
    ("tracing_subscriber", &["telemetry"]),
    ("zeromq", &["events/zmq", "mock"]),
];

/// A source file: its path below `src` without `.rs`, and its code without comments and tests.
struct Source {
    path: String,
    code: String,
}

impl Source {
    /// The top module that the file belongs to.
    fn module(&self) -> &str {
        self.path.split('/').next().unwrap_or_default()
    }

    /// Whether the file is `room` or below it.
    fn is_in(&self, room: &str) -> bool {
        let rest = self.path.strip_prefix(room);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("the folder can be read");
    let paths = entries.map(|entry| entry.expect("the entry can be read").path());
    let mut files: Vec<PathBuf> = paths
        .flat_map(|path| match path.is_dir() {
            true => files_below(&path),
            false => vec![path],
        })
        .collect();
    files.sort();
    files
}

fn sources() -> Vec<Source> {
    let src = root().join("src");
    let rust = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "rs");
    let source = |path: PathBuf| {
        let name = path.strip_prefix(&src).expect("it is below src");
        let text = fs::read_to_string(&path).expect("sources are text");
        Source {
            path: name.with_extension("").display().to_string(),
            code: code_of(&text),
        }
    };
    files_below(&src)
        .into_iter()
        .filter(rust)
        .map(source)
        .collect()
}

/// The lines of code before a file's tests, without comments. Tests stand last in a file, and may
/// use what they like.
fn code_of(text: &str) -> String {
    let before_tests = text.split("#[cfg(test)]\nmod tests").next();
    let code = |line: &&str| !line.trim_start().starts_with("//");
    let lines = before_tests.unwrap_or_default().lines().filter(code);
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules that `code` names as `crate::…`, groups like `crate::{a, b::c}` included.
fn imports(code: &str) -> BTreeSet<&str> {
    code.split("crate::")
        .skip(1)
        .flat_map(|rest| match rest.strip_prefix('{') {
            Some(group) => first_names(group),
            None => vec![first_name(rest)],
        })
        .filter(|name| !name.is_empty())
        .collect()
}

fn first_name(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_');
    &text[..end.unwrap_or(text.len())]
}

/// The first name of each part of a group whose `{` has been read.
fn first_names(group: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut depth = 1;
    let mut start = Some(0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 1 => {
                start = Some(at + 1);
                continue;
            }
            _ if !c.is_whitespace() && depth == 1 => {
                names.extend(start.take().map(|_| first_name(&group[at..])));
            }
            _ => {}
        }
        if depth == 0 {
            break;
        }
    }
    names
}

/// Whether `code` names the crate `name`: as a path's first part, so not as a module of ours.
fn names_crate(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let before = code[..at].chars().next_back();
        let path_start = before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':');
        let global = code[..at].ends_with(" ::") || code[..at].ends_with("(::");
        (path_start || global) && code[at + name.len()..].starts_with("::")
    })
}

/// The modules of the crate's map, in its order, which is the order of allowed imports.
fn map() -> Vec<String> {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("lib.rs is there");
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | `"));
    let names = rows.filter_map(|row| row.split_once("` | "));
    names.map(|(name, _)| name.to_owned()).collect()
}

fn declared() -> BTreeSet<String> {
    let text = fs::read_to_string(root().join("src/lib.rs")).expect("lib.rs is there");
    let lines = text
        .lines()
        .filter_map(|line| line.strip_prefix("pub mod "));
    lines
        .map(|name| name.trim_end_matches(';').to_owned())
        .collect()
}

#[test]
fn the_map_names_exactly_the_modules() {
    let map = map();
    let distinct: BTreeSet<_> = map.iter().cloned().collect();
    assert_eq!(map.len(), distinct.len(), "a module has two rows");
    assert_eq!(distinct, declared());
    assert_eq!(map[..PURE.len()], PURE, "pure modules come first");
}

#[test]
fn a_module_imports_only_modules_above_it() {
    let map = map();
    let place = |name: &str| map.iter().position(|module| module == name);
    for source in sources() {
        // lib.rs declares the modules and main.rs calls the last of them.
        let Some(own) = place(source.module()) else {
            continue;
        };
        for import in imports(&source.code) {
            let other = place(import);
            let allowed = other.is_some_and(|other| other <= own);
            assert!(allowed, "src/{}.rs imports crate::{import}", source.path);
        }
    }
}

#[test]
fn pure_modules_touch_nothing() {
    for source in sources().iter().filter(|s| PURE.contains(&s.module())) {
        for name in IMPURE {
            let found = source.code.contains(name);
            assert!(!found, "src/{}.rs is pure but names {name}", source.path);
        }
    }
}

#[test]
fn an_outside_crate_is_named_in_its_room_alone() {
    for source in sources() {
        for (name, rooms) in ROOMS {
            let at_home = rooms.iter().any(|room| source.is_in(room));
            let named = names_crate(&source.code, name);
            assert!(at_home || !named, "src/{}.rs names {name}", source.path);
        }
    }
}

#[test]
fn roles_stay_apart() {
    for source in sources() {
        let imports = imports(&source.code);
        for (module, forbidden) in [("frontend", "worker"), ("worker", "frontend")] {
            let meets = source.module() == module && imports.contains(forbidden);
            assert!(!meets, "src/{}.rs imports crate::{forbidden}", source.path);
        }
        // What the stand-in shares with us could not show a fault of ours.
        let shared = ["openai", "vision", "model", "http", "mock"];
        let foreign = imports.iter().find(|name| !shared.contains(name));
        if source.module() == "mock" {
            assert_eq!(foreign, None, "src/{}.rs", source.path);
        }
    }
}

#[test]
fn file_names_say_what_is_inside() {
    for path in files_below(&root().join("src")) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        let empty = [
            "mod", "util", "utils", "common", "helpers", "manager", "core",
        ];
        assert!(!empty.contains(&name.as_ref()), "{}", path.display());
    }
}

#[test]
fn every_channel_has_a_limit() {
    for source in sources() {
        let found = source.code.contains("unbounded");
        assert!(!found, "src/{}.rs has a channel without limit", source.path);
    }
}

#[test]
fn imports_are_read_out_of_code() {
    for (code, expected) in [
        ("use crate::id::WorkerId;", &["id"] as &[&str]),
        ("use crate::{block::BlockSize, id};", &["block", "id"]),
        ("use crate::{\n    a::{b, c},\n    d,\n};", &["a", "d"]),
        ("fn f(x: crate::health::Verdict) {}", &["health"]),
        ("use std::fs;", &[]),
    ] {
        let found: Vec<_> = imports(code).into_iter().collect();
        assert_eq!(found, expected, "{code}");
    }
}

#[test]
fn crates_are_told_from_modules_of_ours() {
    for (code, expected) in [
        ("use image::ImageReader;", true),
        ("let x = image::load(y);", true),
        ("use ::image::ImageReader;", true),
        ("use crate::media::image::Size;", false),
        ("let image = 3;", false),
        ("use my_image::X;", false),
    ] {
        assert_eq!(names_crate(code, "image"), expected, "{code}");
    }
}
