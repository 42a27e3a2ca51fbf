//! Images in files: what is written is what was hashed, stays while it is read, and is bounded.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use kvlens::media::shm::{Lent, Shm, ShmError};
use kvlens::media::{Image, digest};
use tempfile::TempDir;

const PAGE: usize = 4_096;

fn folder() -> (TempDir, Arc<str>) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display().to_string();
    (folder, path.into())
}

fn image(bytes: &[u8]) -> Image {
    Image {
        digest: digest("", bytes),
        size: None,
        bytes: Bytes::copy_from_slice(bytes),
        mime: "image/png",
    }
}

/// An image of so many pages.
fn pages(name: u8, pages: usize) -> Image {
    image(&vec![name; pages * PAGE])
}

fn path(lent: &Lent) -> PathBuf {
    lent.url().strip_prefix("file://").expect("a file").into()
}

fn mode(path: &Path) -> u32 {
    let found = fs::symlink_metadata(path).expect("it is there");
    found.permissions().mode() & 0o777
}

/// All names below a folder of the frontends'.
fn names(dir: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("a folder").flatten();
    let mut names: Vec<_> = entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name != "lock")
        .collect();
    names.sort();
    names
}

#[test]
fn a_file_holds_what_was_hashed_under_its_name() {
    let (_keep, dir) = folder();
    let shm = Shm::new(1 << 20);
    let image = image(b"\x89PNG picture");
    let lent = shm.lend(&dir, &image).unwrap();
    let file = path(&lent);
    let bytes = fs::read(&file).unwrap();
    assert_eq!(file.file_stem().unwrap(), &*digest("", &bytes).to_string());
    assert_eq!(file.extension().unwrap(), "png");
    assert_eq!(mode(&file), 0o640);
    assert_eq!(mode(file.parent().unwrap()), 0o750);
    let again = shm.lend(&dir, &image).unwrap();
    assert_eq!(again.url(), lent.url());
    // No part of a file stays beside it.
    assert_eq!(
        names(&file.parent().unwrap().display().to_string()).len(),
        1
    );
    drop((lent, again));
    assert!(file.exists(), "it stays for the next request");
    drop(shm);
    assert_eq!(names(&dir), [""; 0], "the frontend's folder ends with it");
}

#[test]
fn the_least_recently_used_go_first_and_what_is_in_use_never() {
    let (_keep, dir) = folder();
    let shm = Shm::new(4 * PAGE);
    let lend = |name, count| shm.lend(&dir, &pages(name, count));
    let [one, two, three] = [1, 2, 3].map(|name| lend(name, 1).unwrap());
    let paths = [&one, &two, &three].map(path);
    drop((one, two));
    drop(lend(1, 1).unwrap()); // now younger than the second
    let four = lend(4, 2).unwrap();
    assert_eq!(
        paths.each_ref().map(|path| path.exists()),
        [true, false, true]
    );
    let full = lend(5, 2).unwrap_err();
    let bytes = 2 * PAGE;
    let max = 4 * PAGE;
    assert!(matches!(full, ShmError::Full { bytes: b, max: m } if (b, m) == (bytes, max)));
    assert!(
        path(&three).exists() && path(&four).exists(),
        "both are in use"
    );
    drop((three, four));
    lend(5, 2).unwrap();
    assert!(lend(6, 5).is_err(), "larger than the whole");
    // A small file takes a page.
    assert!((7..20).all(|name| shm.lend(&dir, &image(&[name])).is_ok()));
    let own = path(&shm.lend(&dir, &image(&[9])).unwrap());
    assert!(names(&own.parent().unwrap().display().to_string()).len() <= 4);
}

#[test]
fn frontends_leave_each_others_files_alone() {
    let (_keep, dir) = folder();
    let left = Path::new(&*dir).join("4000000.0");
    fs::create_dir(&left).unwrap();
    fs::write(left.join("lock"), "").unwrap();
    fs::write(left.join("ab.png"), "left by a killed frontend").unwrap();
    let [one, two] = [(); 2].map(|()| Shm::new(1 << 20));
    let image = image(b"shown to both");
    let [mine, theirs] = [&one, &two].map(|shm| shm.lend(&dir, &image).unwrap());
    assert!(!left.exists(), "leftovers are swept");
    assert_ne!(mine.url(), theirs.url());
    drop((one, mine));
    assert_eq!(fs::read(path(&theirs)).unwrap(), b"shown to both");
    let third = Shm::new(1 << 20);
    third.lend(&dir, &image).unwrap();
    assert!(path(&theirs).exists(), "a folder in use is not swept");
}

#[test]
fn what_others_put_in_a_files_place_is_not_named() {
    let (_keep, dir) = folder();
    let shm = Shm::new(1 << 20);
    let image = image(b"the picture");
    let first = path(&shm.lend(&dir, &image).unwrap());
    for change in ["removed", "linked", "cut"] {
        fs::remove_file(&first).unwrap();
        match change {
            "linked" => symlink("/etc/passwd", &first).unwrap(),
            "cut" => fs::write(&first, "the").unwrap(),
            _ => {}
        }
        let lent = shm.lend(&dir, &image).unwrap();
        let found = fs::symlink_metadata(path(&lent)).unwrap();
        assert!(found.is_file(), "{change}");
        assert_eq!(fs::read(path(&lent)).unwrap(), b"the picture", "{change}");
    }
    // The whole folder went with its engine: the next image but one goes by a new one.
    fs::remove_dir_all(&*dir).unwrap();
    assert!(shm.lend(&dir, &image).is_err());
    fs::create_dir(&*dir).unwrap();
    shm.lend(&dir, &image).unwrap();
}

#[test]
fn folders_in_which_others_could_replace_files_are_not_used() {
    let set = |path: &str, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    for (mode, used) in [(0o700, true), (0o770, true), (0o1777, true), (0o777, false)] {
        let (_keep, dir) = folder();
        set(&dir, mode).unwrap();
        let lent = Shm::new(1 << 20).lend(&dir, &image(b"a"));
        assert_eq!(lent.is_ok(), used, "{mode:o}");
    }
    let (keep, dir) = folder();
    let link = keep.path().join("link");
    let (_other, elsewhere) = folder();
    symlink(&*elsewhere, &link).unwrap();
    let shm = Shm::new(1 << 20);
    for path in [link, keep.path().join("not there")] {
        let path: Arc<str> = path.display().to_string().into();
        assert!(shm.lend(&path, &image(b"a")).is_err(), "{path}");
        let paused = shm.lend(&path, &image(b"a")).unwrap_err();
        assert!(matches!(paused, ShmError::Paused { .. }), "{paused}");
    }
    assert!(shm.lend(&dir, &image(b"a")).is_ok(), "others are unharmed");
}
