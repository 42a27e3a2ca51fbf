//! The GPUs of this host.

mod nvml;

/// Names the GPUs that programs may use, for CUDA and so for engines.
const VISIBLE: &str = "CUDA_VISIBLE_DEVICES";

/// The GPUs that engines may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gpus {
    /// Never empty; each as `CUDA_VISIBLE_DEVICES` names it.
    Some(Vec<String>),
    /// No GPU can be used, and why.
    None { reason: String },
}

/// The driver's library, loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// The path by which it was found.
    pub library: &'static str,
    /// `None` where it does not say.
    pub version: Option<String>,
}

/// Finds the NVIDIA driver; `None` where [`find`] says why there is none.
pub fn driver() -> Option<Driver> {
    let (library, version) = nvml::driver().ok()?;
    Some(Driver { library, version })
}

/// Finds the NVIDIA GPUs of this host; where the user's `CUDA_VISIBLE_DEVICES` is set, those it
/// names. A host without a driver has none; that is an answer, no error.
pub fn find() -> Gpus {
    let visible = std::env::var_os(VISIBLE);
    let visible = visible.as_ref().map(|list| list.to_string_lossy());
    judge(nvml::device_count(), visible.as_deref())
}

fn judge(found: Result<u32, nvml::NvmlFault>, visible: Option<&str>) -> Gpus {
    let gpus = match (found, visible) {
        (Err(fault), _) => Err(fault.to_string()),
        (Ok(0), _) => Err("the NVIDIA driver is loaded but sees no GPU".to_owned()),
        (Ok(count), None) => Ok((0..count).map(|number| number.to_string()).collect()),
        (Ok(count), Some(list)) => match listed(list, count) {
            gpus if gpus.is_empty() => Err(format!("{VISIBLE} is {list:?}, which names none")),
            gpus => Ok(gpus),
        },
    };
    match gpus {
        Ok(gpus) => Gpus::Some(gpus),
        Err(reason) => Gpus::None { reason },
    }
}

/// The entries of a list of GPUs, as far as CUDA reads it: to the first number that is none of the
/// `count` GPUs. Names (`GPU-…`, `MIG-…`) pass as they are.
fn listed(list: &str, count: u32) -> Vec<String> {
    let is_gpu = |entry: &&str| match entry.parse::<i64>() {
        Ok(number) => (0..i64::from(count)).contains(&number),
        Err(_) => entry.starts_with("GPU-") || entry.starts_with("MIG-"),
    };
    let entries = list.split(',').map(str::trim).take_while(is_gpu);
    entries.map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_driver_and_no_gpu_both_have_a_reason() {
        let absent = nvml::NvmlFault::Library {
            path: "libnvidia-ml.so.1",
            text: "no such file".to_owned(),
        };
        for found in [Ok(0), Err(absent)] {
            let Gpus::None { reason } = judge(found, Some("0")) else {
                panic!("there must be none");
            };
            assert!(reason.contains("NVIDIA"), "{reason}");
        }
    }

    #[test]
    fn the_users_own_list_wins_over_the_count() {
        for (visible, gpus) in [
            (None, &["0", "1", "2"] as &[&str]),
            (Some("2,0"), &["2", "0"]),
            (Some(" 1 , GPU-4f,MIG-a/1/0"), &["1", "GPU-4f", "MIG-a/1/0"]),
            (Some("1,-1,2"), &["1"]),
            (Some("0,3,1"), &["0"]),
            (Some("-1"), &[]),
            (Some(""), &[]),
            (Some("NoDevFiles"), &[]),
        ] {
            let found = match judge(Ok(3), visible) {
                Gpus::Some(found) => found,
                Gpus::None { reason } => {
                    assert!(reason.contains(VISIBLE), "{reason}");
                    Vec::new()
                }
            };
            assert_eq!(found, gpus, "{visible:?}");
        }
    }

    #[test]
    fn finding_never_panics() {
        match find() {
            Gpus::Some(gpus) => assert!(!gpus.is_empty()),
            Gpus::None { reason } => assert!(!reason.is_empty()),
        }
    }
}
