//! GPUs as NVML tells of them: all that is read, the driver's events, and every way in which a driver or a
//! GPU does not answer.

mod events;
mod hang;
mod reach;
mod reading;
mod snapshot;
mod watched;
