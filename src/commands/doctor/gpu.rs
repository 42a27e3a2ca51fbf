//! The driver's library, the GPUs that engines may use, and how each GPU is.

use std::time::Duration;

use crate::commands::doctor::finding::{Check, Finding};
use crate::commands::gpus;
use crate::config::gpu::GpuConfig;
use crate::gpu::{self, Driver, Gpus};
use crate::health::incident::{GpuState, Severity};

const SUBJECT: &str = "NVIDIA driver";

/// Longest wait for the driver: less than all of the host's checks have.
const LOOK_MAX: Duration = Duration::from_secs(4);

/// Looks at all of it.
pub(super) fn check(config: &GpuConfig) -> Vec<Finding> {
    let library = config.nvml_library.as_deref();
    // First, because it waits no longer than the doctor does.
    let shown = match gpus::looked_at(config, LOOK_MAX) {
        Ok(shown) => shown,
        Err(error) => return vec![none(&error.to_string())],
    };
    let mut findings = vec![judge(gpu::driver(library), gpu::find(library))];
    findings.extend(shown.iter().map(|shown| one(&shown.state)));
    findings
}

/// How one GPU is.
fn one(gpu: &GpuState) -> Finding {
    let subject = gpu.called();
    let worst = gpu.incidents.iter().max_by_key(|one| one.severity);
    let Some(worst) = worst else {
        return Finding::ok(Check::Gpu, &subject, format!("healthy, {}", gpu.uuid));
    };
    let seen = gpu.incidents.iter().map(|one| one.text.as_str());
    let seen = seen.collect::<Vec<_>>().join("; ");
    match worst.severity {
        Severity::Info => Finding::ok(Check::Gpu, &subject, format!("healthy; {seen}")),
        Severity::Degraded | Severity::Unknown => {
            Finding::warn(Check::Gpu, &subject, seen, &worst.action)
        }
        Severity::NotReady | Severity::Fatal => {
            Finding::fail(Check::Gpu, &subject, seen, &worst.action)
        }
    }
}

fn none(reason: &str) -> Finding {
    Finding::warn(
        Check::Gpu,
        SUBJECT,
        format!("{reason}; `kvlens up` here would run mock engines"),
        "`nvidia-smi` on a host that should have a GPU; elsewhere there is nothing to do",
    )
}

fn judge(driver: Option<Driver>, gpus: Gpus) -> Finding {
    let shown = driver.map_or("not loaded".to_owned(), |driver| {
        let version = driver.version.as_deref().unwrap_or("of unknown version");
        format!("{version} by {}", driver.library)
    });
    match gpus {
        Gpus::Some(gpus) => {
            let seen = format!("{shown}; {} GPUs for engines", gpus.len());
            Finding::ok(Check::Gpu, SUBJECT, seen)
        }
        Gpus::None { reason } => none(&format!("{shown}: {reason}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::doctor::finding::Status;

    #[test]
    fn no_gpu_is_a_warning_that_says_what_it_means() {
        let driver = || Driver {
            library: "libnvidia-ml.so.1".to_owned(),
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
                "570.86 by libnvidia-ml.so.1; 2 GPUs for engines",
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
