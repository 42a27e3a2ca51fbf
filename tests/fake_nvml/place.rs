//! Where the library's own file is, and what lies beside it.

use std::env;
use std::ffi::{CStr, OsStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process;

const RTLD_LAZY: c_int = 1;
const RTLD_NODELETE: c_int = 0x1000;

/// What `dladdr` says of an address.
#[repr(C)]
struct Symbol {
    file: *const c_char,
    base: *mut c_void,
    name: *const c_char,
    address: *mut c_void,
}

unsafe extern "C" {
    fn dladdr(address: *const c_void, symbol: *mut Symbol) -> c_int;
    fn dlopen(file: *const c_char, flags: c_int) -> *mut c_void;
}

/// What the library is told by.
#[derive(Debug, Default)]
pub(crate) struct Files {
    pub(crate) scenario: Option<PathBuf>,
    pub(crate) control: Option<PathBuf>,
}

/// A `scenario.json` beside the library's file, with a `control.sock` there; else what the environment
/// names.
pub(crate) fn files() -> Files {
    if let Some(folder) = own_file().and_then(Path::parent) {
        let scenario = folder.join("scenario.json");
        if scenario.is_file() {
            return Files {
                scenario: Some(scenario),
                control: Some(folder.join("control.sock")),
            };
        }
    }
    let named = |name| env::var_os(name).filter(|path| !path.is_empty());
    let control = named("FAKE_NVML_CONTROL").map(|path| {
        let pid = process::id().to_string();
        path.to_str().map_or(PathBuf::from(&path), |path| {
            path.replace("{pid}", &pid).into()
        })
    });
    Files {
        scenario: named("FAKE_NVML_SCENARIO").map(PathBuf::from),
        control,
    }
}

/// Keeps the library in the process when a client unloads it, because a thread of it may run.
pub(crate) fn keep_loaded() -> Result<(), String> {
    let file = symbol().map_or(std::ptr::null(), |symbol| symbol.file);
    if file.is_null() {
        return Err("the library's own file is not known".to_owned());
    }
    // SAFETY: `file` is a string that the dynamic linker keeps while the library is loaded.
    match unsafe { dlopen(file, RTLD_LAZY | RTLD_NODELETE) }.is_null() {
        true => Err("the library cannot keep itself loaded".to_owned()),
        false => Ok(()),
    }
}

fn own_file() -> Option<&'static Path> {
    let file = symbol()?.file;
    // SAFETY: as in `keep_loaded`; this code is gone with the library, and the path with it.
    let name = (!file.is_null()).then(|| unsafe { CStr::from_ptr(file) })?;
    Some(Path::new(OsStr::from_bytes(name.to_bytes())))
}

fn symbol() -> Option<Symbol> {
    let mut symbol = MaybeUninit::uninit();
    // SAFETY: any address may be asked for, and `symbol` has room for the answer.
    let found = unsafe { dladdr(files as *const c_void, symbol.as_mut_ptr()) };
    // SAFETY: `dladdr` has filled it where it says so.
    (found != 0).then(|| unsafe { symbol.assume_init() })
}
