//! What the driver answers and tells.

use super::*;
use Severity::{Degraded, Fatal, Info, Unknown};
use Signal::*;

pub(super) fn rows() -> Vec<Row> {
    let answer = |signal, code: u32, severity| {
        let found = (signal, u64::from(code), severity);
        row(found, "answered NVML", move |bench| {
            bench.poll(&failing(Call::Other, code));
        })
    };
    let unreachable = |signal, code: u32, severity| {
        let found = (signal, u64::from(code), severity);
        row(found, "no way", move |bench| bench.unreachable(code))
    };
    let refused = |bench: &mut Bench| bench.polls(3, &failing(Call::Other, 999));
    let blocked = |bench: &mut Bench| (0..3).for_each(|_| bench.unreachable(17));
    vec![
        answer(GpuLost, 15, Fatal),
        unreachable(GpuLost, 15, Fatal),
        unreachable(GpuMissing, 6, Fatal),
        answer(GpuNotReady, 23, Fatal),
        unreachable(GpuNotReady, 25, Fatal),
        answer(GpuNotReady, 27, Unknown),
        unreachable(GpuNotReady, 27, Unknown),
        answer(GpuNotReady, 28, Fatal),
        answer(GpuNotReady, 29, Degraded),
        answer(GpuNotReady, 30, Fatal),
        answer(ResetRequired, 16, Fatal),
        unreachable(ResetRequired, 16, Fatal),
        answer(DriverMismatch, 18, Fatal),
        unreachable(DriverMismatch, 18, Fatal),
        answer(NoDriver, 9, Unknown),
        unreachable(NoDriver, 9, Unknown),
        unreachable(NoDriver, 12, Unknown),
        unreachable(NoDriver, 4, Unknown),
        unreachable(NoDriver, 1, Unknown),
        row((OsBlocked, 999, Fatal), "NVML 999 3 times", refused),
        row((OsBlocked, 17, Fatal), "no way: 17", blocked),
        answer(Irq, 11, Fatal),
        row((Hang, 0, Unknown), "for 1s", |bench| bench.hang(1)),
        row((Hang, 0, Fatal), "for 10s", |bench| bench.hang(10)),
    ]
}

pub(super) fn rows_of_actions() -> Vec<Row> {
    let action = |code, severity, words| {
        let found = (RecoveryAction, code, severity);
        row(found, words, move |bench| {
            bench.poll(&changed(|r| r.recovery_action = Some(code)));
        })
    };
    let advised = |bench: &mut Bench| bench.event(0x8000, 2);
    let unavailable = |bench: &mut Bench| bench.event(0x4000, 0);
    vec![
        action(1, Fatal, "reset the GPU"),
        action(2, Fatal, "reboot the node"),
        action(3, Degraded, "drain peers"),
        action(3, Fatal, "drain peers").among(peers),
        action(4, Fatal, "drain and reset"),
        action(5, Degraded, "IMEX"),
        action(5, Fatal, "IMEX").among(peers),
        action(6, Fatal, "reset the bus"),
        action(7, Fatal, "reboot the system"),
        action(8, Fatal, "new"),
        row(
            (RecoveryEvent, 2, Degraded),
            "another recovery action",
            advised,
        ),
        row((RecoveryEvent, 0, Degraded), "unavailable", unavailable),
        row((RecoveryEvent, 154, Degraded), "XID 154", |bench| {
            bench.xid(154);
        }),
        row((Xid, 13, Info), "XID 13: graphics", |bench| bench.xid(13)),
        row((Xid, 79, Fatal), "XID 79: GPU has fallen", |bench| {
            bench.xid(79);
        }),
    ]
}
