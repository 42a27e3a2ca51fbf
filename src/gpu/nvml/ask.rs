//! One call after another: what is absent is not asked for again, what fails is noted.

use nvml_wrapper::error::NvmlError;

use crate::gpu::pulse::Pulse;
use crate::health::reading::{Call, Code, Failure};

/// What can be absent from a GPU or its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    Throttle,
    Temperature,
    Utilization,
    Power,
    PerformanceState,
    Memory,
    Fields,
    Sram,
    Banks,
    RetiredPages,
    Links,
    LinkFields,
    LinkCounters,
    Fabric,
    PcieWidth,
    PcieGeneration,
    Slowdown,
    Margin,
    ComputeProcesses,
    GraphicsProcesses,
    MpsProcesses,
    ComputeMode,
    Persistence,
    Mig,
    ConfidentialCompute,
}

/// What is known to be absent, for as long as a GPU is open.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Absent(u64);

impl Absent {
    pub(super) fn has(self, item: Item) -> bool {
        self.0 & (1 << item as u64) != 0
    }

    pub(super) fn add(&mut self, item: Item) {
        self.0 |= 1 << item as u64;
    }
}

/// The calls of one poll.
#[derive(Debug)]
pub(super) struct Asking<'a> {
    pub(super) pulse: &'a Pulse,
    pub(super) absent: Absent,
    failures: Vec<Failure>,
    is_answered: bool,
    /// The GPU cannot be asked any more.
    gone: Option<Code>,
}

/// How a call ends that gives no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Miss {
    /// The GPU or its driver does not have it.
    Absent,
    /// It gives no value this time, for no fault of the GPU.
    Passing,
    Failed(Code),
}

/// Most failures that one poll notes; it makes fewer calls on any GPU of today.
const FAILURES_MAX: usize = 64;

impl<'a> Asking<'a> {
    pub(super) fn new(pulse: &'a Pulse, absent: Absent) -> Self {
        Self {
            pulse,
            absent,
            failures: Vec::new(),
            is_answered: false,
            gone: None,
        }
    }

    /// Asks for an item; `None` where it is absent or fails, and without asking where it is known to be
    /// absent or the GPU to be gone.
    pub(super) fn ask<T>(
        &mut self,
        item: Item,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Option<T> {
        if self.absent.has(item) {
            return None;
        }
        match self.try_ask(call)? {
            Ok(value) => Some(value),
            Err(Miss::Absent) => {
                self.absent.add(item);
                None
            }
            Err(Miss::Passing) => None,
            Err(Miss::Failed(code)) => {
                let call = match item {
                    Item::Power => Call::PowerUsage,
                    _ => Call::Other,
                };
                self.note(Failure { call, code });
                None
            }
        }
    }

    /// The same, where the answer is the caller's to judge. `None` where the GPU is known to be gone.
    pub(super) fn try_ask<T>(
        &mut self,
        call: impl FnOnce() -> Result<T, NvmlError>,
    ) -> Option<Result<T, Miss>> {
        if self.gone.is_some() {
            return None;
        }
        let answer = {
            let _call = self.pulse.call();
            call()
        };
        let answer = answer.map_err(miss_of);
        match answer {
            Err(Miss::Failed(code)) if is_gone(code) => self.gone = Some(code),
            Ok(_) => self.is_answered = true,
            Err(_) => {}
        }
        Some(answer)
    }

    /// Notes that a call failed, which is none of those that are told apart.
    pub(super) fn fail(&mut self, code: Code) {
        let call = Call::Other;
        self.note(Failure { call, code });
    }

    fn note(&mut self, failure: Failure) {
        if self.failures.len() < FAILURES_MAX && !self.failures.contains(&failure) {
            self.failures.push(failure);
        }
    }

    /// What failed, and whether there was any value at all.
    ///
    /// # Errors
    ///
    /// The code by which the GPU is known to be gone.
    pub(super) fn end(mut self) -> Result<(Vec<Failure>, bool), Code> {
        if let Some(code) = self.gone {
            return Err(code);
        }
        // A call that one may not make, or that a driver answers with "unknown", is of that call: what
        // bars the way to a GPU bars all of them.
        if self.is_answered {
            let is_of_one_call = |failure: &Failure| {
                failure.call == Call::Other
                    && matches!(failure.code, Code::NO_PERMISSION | Code::UNKNOWN)
            };
            self.failures.retain(|failure| !is_of_one_call(failure));
        }
        Ok((self.failures, self.is_answered))
    }
}

/// Whether a GPU that answers so has to be opened anew before it answers otherwise.
pub(super) fn is_gone(code: Code) -> bool {
    matches!(
        code,
        Code::GPU_IS_LOST | Code::UNINITIALIZED | Code::GPU_NOT_FOUND
    )
}

/// Values of `nvmlReturn_t` that the wrapper does not name begin here. Below, its "unexpected variant" is
/// a value that it could not read, and no answer of NVML's.
const CODES_FIRST_UNNAMED: u32 = 23;
/// The structure's version is not one that the driver knows.
const ARGUMENT_VERSION_MISMATCH: u32 = 25;
const DEPRECATED: u32 = 26;

pub(super) fn miss_of(error: NvmlError) -> Miss {
    match error {
        NvmlError::NotSupported
        | NvmlError::FunctionNotFound
        | NvmlError::FailedToLoadSymbol(_)
        | NvmlError::InvalidArg
        | NvmlError::UnexpectedVariant(ARGUMENT_VERSION_MISMATCH | DEPRECATED)
        | NvmlError::Utf8Error(_) => Miss::Absent,
        NvmlError::UnexpectedVariant(value) if value < CODES_FIRST_UNNAMED => Miss::Passing,
        // A list that grew between the question for its length and that for itself, or a counter that has
        // not counted yet.
        NvmlError::InsufficientSize(_) | NvmlError::NoData => Miss::Passing,
        error => Miss::Failed(Code(error.into())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn answers_are_told_apart() {
        for (error, miss) in [
            (NvmlError::NotSupported, Miss::Absent),
            (NvmlError::FailedToLoadSymbol(String::new()), Miss::Absent),
            (NvmlError::UnexpectedVariant(25), Miss::Absent),
            (
                NvmlError::UnexpectedVariant(27),
                Miss::Failed(Code::NOT_READY),
            ),
            (NvmlError::UnexpectedVariant(5), Miss::Passing),
            (NvmlError::InsufficientSize(None), Miss::Passing),
            (NvmlError::GpuLost, Miss::Failed(Code::GPU_IS_LOST)),
            (NvmlError::Unknown, Miss::Failed(Code::UNKNOWN)),
        ] {
            let text = error.to_string();
            assert_eq!(miss_of(error), miss, "{text}");
        }
    }

    #[test]
    fn what_is_absent_is_asked_for_once() {
        let pulse = Pulse::new(Instant::now());
        let mut asking = Asking::new(&pulse, Absent::default());
        let absent = asking.ask(Item::Fabric, || Err::<(), _>(NvmlError::NotSupported));
        assert_eq!(absent, None);
        let again = asking.ask(Item::Fabric, || -> Result<(), _> { panic!("asked again") });
        assert_eq!(again, None);
        assert_eq!(asking.ask(Item::Mig, || Ok(1)), Some(1));
        assert_eq!(asking.end(), Ok((Vec::new(), true)));
    }

    #[test]
    fn one_barred_call_is_no_failure_but_all_are() {
        let pulse = Pulse::new(Instant::now());
        let barred = || Err::<u32, _>(NvmlError::NoPermission);
        let failure = Failure {
            call: Call::Other,
            code: Code::NO_PERMISSION,
        };
        let mut asking = Asking::new(&pulse, Absent::default());
        asking.ask(Item::Mig, barred);
        asking.ask(Item::Fabric, barred);
        assert_eq!(asking.end(), Ok((vec![failure], false)));

        let mut asking = Asking::new(&pulse, Absent::default());
        asking.ask(Item::Mig, barred);
        asking.ask(Item::Power, barred);
        asking.ask(Item::Memory, || Ok(1));
        let power = Failure {
            call: Call::PowerUsage,
            ..failure
        };
        assert_eq!(asking.end(), Ok((vec![power], true)));
    }

    #[test]
    fn a_lost_gpu_is_not_asked_further() {
        let pulse = Pulse::new(Instant::now());
        let mut asking = Asking::new(&pulse, Absent::default());
        asking.ask(Item::Mig, || Err::<(), _>(NvmlError::GpuLost));
        asking.ask(Item::Fabric, || -> Result<(), _> {
            panic!("asked of a lost one")
        });
        assert_eq!(asking.end(), Err(Code::GPU_IS_LOST));
    }
}
