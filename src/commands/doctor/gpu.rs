//! The driver's library and the GPUs that engines may use.

use crate::commands::doctor::finding::{Check, Finding};
use crate::gpu::{self, Driver, Gpus};

const SUBJECT: &str = "NVIDIA driver";

/// Looks for both. A driver that hangs keeps the thread.
pub(super) fn check() -> Vec<Finding> {
    vec![judge(gpu::driver(), gpu::find())]
}

fn judge(driver: Option<Driver>, gpus: Gpus) -> Finding {
    let shown = driver.map_or("not loaded".to_owned(), |driver| {
        let version = driver.version.as_deref().unwrap_or("of unknown version");
        format!("{version} by {}", driver.library)
    });
    match gpus {
        Gpus::Some(gpus) => {
            let seen = format!("{shown}; GPUs {}", gpus.join(", "));
            Finding::ok(Check::Gpu, SUBJECT, seen)
        }
        Gpus::None { reason } => Finding::warn(
            Check::Gpu,
            SUBJECT,
            format!("{shown}: {reason}; `kvlens up` here would run mock engines"),
            "`nvidia-smi` on a host that should have a GPU; elsewhere there is nothing to do",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::finding::Status;

    #[test]
    fn no_gpu_is_a_warning_that_says_what_it_means() {
        let driver = || Driver {
            library: "libnvidia-ml.so.1",
            version: Some("570.86".to_owned()),
        };
        let none = || Gpus::None {
            reason: "no such library".to_owned(),
        };
        let some = Gpus::Some(vec!["0".to_owned(), "1".to_owned()]);
        for (driver, gpus, status, part) in [
            (
                Some(driver()),
                some,
                Status::Ok,
                "570.86 by libnvidia-ml.so.1; GPUs 0, 1",
            ),
            (None, none(), Status::Warn, "not loaded: no such library"),
            (Some(driver()), none(), Status::Warn, "mock engines"),
        ] {
            let found = judge(driver, gpus);
            assert_eq!(found.status, status);
            assert!(found.seen.contains(part), "{found:?}");
        }
    }
}
