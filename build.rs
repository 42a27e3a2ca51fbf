//! Finds the revision that `kvlens --version` shows: `KVLENS_REVISION` where a build without a
//! repository sets it, else git's, else `unknown`.

use std::env;
use std::path::Path;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=KVLENS_REVISION");
    let given = env::var("KVLENS_REVISION").ok().filter(|s| !s.is_empty());
    let revision = given.or_else(from_git).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=BUILD_REVISION={revision}");
}

fn from_git() -> Option<String> {
    // Sources unpacked inside somebody else's repository have a prefix, and no revision there.
    if !git(&["rev-parse", "--show-prefix"])?.is_empty() {
        return None;
    }
    // The log of HEAD grows with every commit and checkout; HEAD itself only names a branch.
    for name in ["HEAD", "logs/HEAD"] {
        let path = git(&["rev-parse", "--git-path", name])?;
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    git(&["rev-parse", "--short", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
