//! The GPUs of this host.

mod nvml;

/// How many GPUs there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GpuCount {
    /// Never 0.
    Some(u32),
    /// No GPU can be used, and why.
    None { reason: String },
}

/// Counts the NVIDIA GPUs of this host. A host without a driver has none; that is an answer, no
/// error.
pub fn count() -> GpuCount {
    judge(nvml::device_count())
}

fn judge(found: Result<u32, nvml::NvmlFault>) -> GpuCount {
    match found {
        Ok(0) => GpuCount::None {
            reason: "the NVIDIA driver is loaded but sees no GPU".to_owned(),
        },
        Ok(gpus) => GpuCount::Some(gpus),
        Err(fault) => GpuCount::None {
            reason: fault.to_string(),
        },
    }
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
            let GpuCount::None { reason } = judge(found) else {
                panic!("there must be none");
            };
            assert!(reason.contains("NVIDIA"), "{reason}");
        }
        assert_eq!(judge(Ok(8)), GpuCount::Some(8));
    }

    #[test]
    fn counting_never_panics() {
        match count() {
            GpuCount::Some(gpus) => assert!(gpus > 0),
            GpuCount::None { reason } => assert!(!reason.is_empty()),
        }
    }
}
