//! The library's symbols: what is the same of all of them.

pub(crate) mod events;
pub(crate) mod fields;
pub(crate) mod find;
pub(crate) mod gpus;
pub(crate) mod links;
pub(crate) mod memory;
pub(crate) mod system;

use std::ffi::{c_char, c_uint};
use std::panic::{self, AssertUnwindSafe};

use nvml_wrapper_sys::bindings::*;

use crate::library::{self, Answer};
use crate::settings;

/// Symbols of the library, each with its arguments and what answers it. That one has another signature
/// than the bindings say does not compile.
macro_rules! symbols {
    ($($name:ident($($argument:ident: $type:ty),*) $answer:block)*) => {
        pub(crate) const SYMBOLS: &[&str] = &[$(stringify!($name)),*];
        $(
            #[unsafe(no_mangle)]
            extern "C" fn $name($($argument: $type),*) -> nvmlReturn_t {
                crate::call::answered(stringify!($name), || $answer)
            }
            const _: fn(&mut NvmlLib) = |library| library.$name = Ok($name);
        )*
    };
}

/// As `symbols`, of those whose first argument is a GPU; what answers them sees its settings.
macro_rules! symbols_of_gpu {
    ($($name:ident($($argument:ident: $type:ty),*) |$gpu:ident| $answer:block)*) => {
        symbols! {
            $(
                $name(device: nvmlDevice_t $(, $argument: $type)*) {
                    crate::call::asked(stringify!($name), device, |$gpu| $answer)
                }
            )*
        }
    };
}

pub(crate) use {symbols, symbols_of_gpu};

/// All symbols that count calls and can be given errors.
pub(crate) fn all_symbols() -> impl Iterator<Item = &'static str> {
    let files = [
        system::SYMBOLS,
        find::SYMBOLS,
        events::SYMBOLS,
        gpus::SYMBOLS,
        memory::SYMBOLS,
        links::SYMBOLS,
        fields::SYMBOLS,
    ];
    files.into_iter().flatten().copied()
}

/// Counts a call and answers it. A panic is an error of NVML's, not the end of the client's process.
pub(crate) fn answered(symbol: &'static str, answer: impl FnOnce() -> Answer) -> nvmlReturn_t {
    let answer = || {
        library::count(symbol);
        answer()
    };
    match panic::catch_unwind(AssertUnwindSafe(answer)) {
        Ok(Ok(())) => nvmlReturn_enum_NVML_SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => nvmlReturn_enum_NVML_ERROR_UNKNOWN,
    }
}

/// What a GPU says of itself, once it has hung for as long as it does, and unless it fails.
pub(crate) fn asked(
    symbol: &'static str,
    device: nvmlDevice_t,
    answer: impl FnOnce(&settings::Gpu) -> Answer,
) -> Answer {
    let (gpu, resets) = library::device(device)?;
    gpu.count(symbol);
    gpu.hang(None);
    library::is_up()?;
    gpu.fault(symbol, resets)?;
    gpu.with(answer)
}

/// Whether the system lets `symbol` have a value.
pub(crate) fn allowed(symbol: &str) -> Answer {
    let error = library::system(|system| {
        let errors = system.errors.as_ref();
        errors.and_then(|errors| errors.get(symbol)).copied()
    })?;
    let error = error.filter(|code| *code != nvmlReturn_enum_NVML_SUCCESS);
    error.map_or(Ok(()), Err)
}

/// Writes what the client asked for, where there is that.
pub(crate) fn out<T>(to: *mut T, value: impl Into<Option<T>>) -> Answer {
    if to.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    let value = value
        .into()
        .ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
    // SAFETY: NVML's contract is that a pointer that is not null has room for the answer.
    unsafe { to.write(value) };
    Ok(())
}

/// Has `fill` write what the client asked for, field by field: a client that reads a byte as a word finds
/// its own zeros behind it.
pub(crate) fn fill<T>(to: *mut T, fill: impl FnOnce(&mut T)) -> Answer {
    known(!to.is_null())?;
    // SAFETY: as for `out`; nobody else has the client's structure during the call.
    fill(unsafe { &mut *to });
    Ok(())
}

/// Writes a text with the zero that ends it.
pub(crate) fn out_text(to: *mut c_char, length: c_uint, text: Option<&str>) -> Answer {
    if to.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    let text = text.ok_or(nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED)?;
    if text.len() >= length as usize {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    for (at, byte) in text.bytes().chain([0]).enumerate() {
        // SAFETY: the client has room for `length` bytes, which is more than the text's.
        unsafe { to.add(at).write(byte.cast_signed()) };
    }
    Ok(())
}

/// Writes a list as NVML does: its length alone where the client has no room for it.
pub(crate) fn out_list<T>(count: *mut c_uint, to: *mut T, list: &[T]) -> Answer
where
    T: Copy,
{
    let length = c_uint::try_from(list.len()).map_err(|_| nvmlReturn_enum_NVML_ERROR_UNKNOWN)?;
    let room = read(count)?;
    out(count, length)?;
    if length == 0 {
        return Ok(());
    }
    if room < length {
        return Err(nvmlReturn_enum_NVML_ERROR_INSUFFICIENT_SIZE);
    }
    if to.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    // SAFETY: the client says that it has room for `room`, which is as many or more.
    unsafe { to.copy_from_nonoverlapping(list.as_ptr(), list.len()) };
    Ok(())
}

/// What the client has written.
pub(crate) fn read<T: Copy>(from: *const T) -> Answer<T> {
    if from.is_null() {
        return Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT);
    }
    // SAFETY: as for `out`, of what the client hands over.
    Ok(unsafe { from.read() })
}

/// What NVML's versioned structures begin with.
pub(crate) const fn version_of<T>(number: u32) -> u32 {
    // Structures of NVML have less than 16 MiB.
    size_of::<T>() as u32 | number << 24
}

/// The number with which the structure that the client hands over begins, if it is one of `versions`.
pub(crate) fn version_in<T>(structure: *const T, versions: &[u32]) -> Answer<u32> {
    let version = read(structure.cast::<u32>())?;
    match versions.contains(&version) {
        true => Ok(version),
        false => Err(nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH),
    }
}

/// What NVML says of arguments that it does not know.
pub(crate) fn known(are_known: bool) -> Answer {
    match are_known {
        true => Ok(()),
        false => Err(nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT),
    }
}
