//! Who uses the GPU, and in which modes.

use super::*;
use crate::health::judge::Progress;
use crate::health::reading::Foreign;
use Severity::{Degraded, Fatal, Info, NotReady};
use Signal::*;

pub(super) fn rows() -> Vec<Row> {
    let foreign = |severity, words| {
        let (change, lack): (Change, Change) = (|r| other(r, 513), |r| r.processes = None);
        read((ForeignProcess, 0, severity), words, (change, lack))
    };
    let little = set!(memory = free(50));
    let needed = "51200 MiB are free, and the engine needs 129945";
    let mode = |severity, words, change: Change| {
        let lack: Change = |r| r.compute_mode = None;
        read((ComputeMode, 0, severity), words, (change, lack))
    };
    let shared: Change = |r| {
        r.compute_mode = Some(3);
        other(r, 1);
    };
    let cut = |words, change: Change| {
        let lack: Change = |r| r.mig = None;
        read((Mig, 0, Fatal), words, (change, lack))
    };
    let expected = |context: &mut Context| context.expects_mig = true;
    let full = set!(utilization_percent = 100);
    let unready = set!(is_confidential_ready = false);
    vec![
        foreign(
            Degraded,
            "process 42, which is not the engine's, has 513 MiB",
        ),
        foreign(NotReady, "process 42").among(starting),
        read_after(10, (Memory, 0, NotReady), needed, little).among(starting),
        mode(Fatal, "prohibited", |r| r.compute_mode = Some(2)),
        mode(NotReady, "process 42", shared),
        read(
            (Persistence, 0, Info),
            "does not keep",
            set!(is_persistent = false),
        ),
        cut("is cut into instances, is to be whole", |r| {
            cut_into(r, true, true);
        }),
        cut("after a reset will be cut", |r| cut_into(r, false, true)),
        cut("is whole, is to be cut", |r| cut_into(r, false, false)).among(expected),
        // The first poll learns how many tokens there are.
        read_after(61, (Stuck, 0, Fatal), "no token for 60s", full).among(waiting),
        read((ConfidentialCompute, 0, NotReady), "not set ready", unready),
    ]
}

fn other(reading: &mut Reading, mebibytes: u64) {
    let foreign = Foreign {
        pid: 42,
        memory_bytes: mebibytes << 20,
    };
    reading.processes = Some(Processes {
        own: 0,
        foreign: Some(foreign),
    });
}

fn free(gibibytes: u64) -> crate::health::reading::Memory {
    crate::health::reading::Memory {
        total_bytes: 141 << 30,
        free_bytes: gibibytes << 30,
    }
}

fn cut_into(reading: &mut Reading, is_enabled: bool, will_be_enabled: bool) {
    reading.mig = Some(crate::health::reading::Mig {
        is_enabled,
        will_be_enabled,
    });
}

fn waiting(context: &mut Context) {
    context.progress = Some(Progress {
        running: 4,
        generated_tokens: 9,
    });
}
