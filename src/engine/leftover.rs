//! What an engine may leave behind: processes that outlive its first one.
//!
//! Most are in its process group. One that left the group has a mark in its environment; one that
//! wrote over its environment too (as those do that set a title) was seen below the engine before.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, kill_process_group, pidfd_open, pidfd_send_signal,
};
use tracing::warn;

/// The variable that marks the processes of an engine's life.
pub(crate) const MARK: &str = "KVLENS_ENGINE";

/// Searches for what is left, each finding what was started during the one before.
const ROUNDS_MAX: usize = 10;

/// How long a search that found nothing waits for the next. A process on its way from one program
/// to another has no environment for some microseconds (`execve` sets it up after the switch).
const EXEC_PAUSE: Duration = Duration::from_millis(5);

/// A process for good: a number alone may by now be another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    number: i32,
    /// When it started, in clock ticks since the boot.
    start: u64,
}

/// An entry of the process table.
#[derive(Clone, Copy, Debug)]
struct Entry {
    process: Process,
    parent: i32,
    group: i32,
}

/// The processes of one life of an engine.
#[derive(Debug)]
pub(crate) struct Kin {
    leader: Process,
    mark: String,
    /// Those seen below the leader or in its group.
    seen: BTreeSet<Process>,
}

impl Kin {
    /// The engine whose first process is `leader`, the leader of a process group.
    pub(crate) fn new(leader: Pid, mark: String) -> Self {
        let number = leader.as_raw_nonzero().get();
        let start = entry(number).map_or(0, |entry| entry.process.start);
        Self {
            leader: Process { number, start },
            mark,
            seen: BTreeSet::new(),
        }
    }

    /// Notes who is below the leader now.
    pub(crate) fn look(&mut self) {
        let table = table();
        let mut family = BTreeSet::from([self.leader.number]);
        loop {
            let members = family.len();
            let joins = |entry: &&Entry| {
                family.contains(&entry.parent) || entry.group == self.leader.number
            };
            let joining: Vec<_> = table.iter().filter(joins).map(|e| e.process).collect();
            family.extend(joining.iter().map(|process| process.number));
            self.seen.extend(joining);
            if family.len() == members {
                return;
            }
        }
    }

    /// A line for the leader and one for each other process, for a later run to read.
    pub(crate) fn record(&self) -> String {
        let line = |process: &Process| format!("{} {}", process.number, process.start);
        let others = self.seen.iter().map(|process| line(process) + "\n");
        let others: String = others.collect();
        format!("{} {}\n{others}", line(&self.leader), self.mark)
    }

    /// Reads a record; `None` where it is none.
    pub(crate) fn parse(record: &str) -> Option<Self> {
        let mut lines = record.lines();
        let mut words = lines.next()?.split_whitespace();
        let leader = process(words.next()?, words.next()?)?;
        let seen = |line: &str| line.split_once(' ').and_then(|(n, s)| process(n, s));
        Some(Self {
            leader,
            mark: words.next().unwrap_or_default().to_owned(),
            seen: lines.filter_map(seen).collect(),
        })
    }

    /// Whether the first process is still there.
    pub(crate) fn leader_is_there(&self) -> bool {
        entry(self.leader.number).is_some_and(|entry| entry.process == self.leader)
    }

    /// Signals the whole process group. The leader must not have been waited for long ago: its
    /// number may then lead another group.
    pub(crate) fn signal_group(&self, signal: Signal) -> io::Result<()> {
        let Some(leader) = Pid::from_raw(self.leader.number) else {
            return Ok(());
        };
        match kill_process_group(leader, signal) {
            // No such process: the whole group has ended.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Kills every process of the engine that left its group.
    pub(crate) fn kill_strays(&self) {
        let mut killed = BTreeSet::new();
        let mut is_quiet = false;
        for _ in 0..ROUNDS_MAX {
            let strays = table().into_iter().map(|entry| entry.process);
            let is_new = |process: &Process| !killed.contains(process) && self.has(*process);
            let strays: Vec<_> = strays.filter(is_new).collect();
            match (strays.is_empty(), is_quiet) {
                (true, true) => return,
                (true, false) => thread::sleep(EXEC_PAUSE),
                (false, _) => {}
            }
            is_quiet = strays.is_empty();
            for process in strays {
                if let Err(error) = kill(process) {
                    warn!(pid = process.number, %error, "an engine's process cannot be ended");
                }
                killed.insert(process);
            }
        }
    }

    fn has(&self, process: Process) -> bool {
        let is_ours = self.seen.contains(&process) || self.has_mark(process.number);
        is_ours && process.number != getpid().as_raw_nonzero().get()
    }

    fn has_mark(&self, number: i32) -> bool {
        let marked = format!("{MARK}={}", self.mark);
        // Another user's processes cannot be read, and none of them is the engine's.
        let environment = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        let mut variables = environment.split(|byte| *byte == 0);
        !self.mark.is_empty() && variables.any(|variable| variable == marked.as_bytes())
    }
}

/// Ends the engine of a record that a former run left.
pub(crate) fn end(record: &str) {
    let Some(kin) = Kin::parse(record) else {
        return;
    };
    if kin.leader_is_there() {
        let pid = kin.leader.number;
        warn!(pid, "ending an engine that a former run left");
        if let Err(error) = kin.signal_group(Signal::KILL) {
            warn!(pid, %error, "the engine cannot be ended");
        }
    }
    kin.kill_strays();
}

fn kill(process: Process) -> io::Result<()> {
    let Some(pid) = Pid::from_raw(process.number) else {
        return Ok(());
    };
    // What is held cannot become another process; what is not held yet is looked at again.
    let held = pidfd_open(pid, PidfdFlags::empty());
    let is_same = || entry(process.number).is_some_and(|entry| entry.process == process);
    match held.and_then(|held| match is_same() {
        true => pidfd_send_signal(held, Signal::KILL),
        false => Ok(()),
    }) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn process(number: &str, start: &str) -> Option<Process> {
    Some(Process {
        number: number.parse().ok()?,
        start: start.parse().ok()?,
    })
}

/// The process table, without those that have ended.
fn table() -> Vec<Entry> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| entry.file_name().to_str()?.parse().ok();
    entries.filter_map(number).filter_map(entry).collect()
}

fn entry(number: i32) -> Option<Entry> {
    let stat = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
    // The second field, the program's name in parentheses, may have spaces and parentheses of its
    // own. After it come the state, the parent and the group; the start time is field 22.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<_> = rest.split_whitespace().collect();
    let has_ended = matches!(*fields.first()?, "Z" | "X");
    (!has_ended).then_some(())?;
    Some(Entry {
        process: Process {
            number,
            start: fields.get(19)?.parse().ok()?,
        },
        parent: fields.get(1)?.parse().ok()?,
        group: fields.get(2)?.parse().ok()?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};
    use std::time::Instant;

    use super::*;

    /// A process group of one, and its record.
    pub(crate) fn sleeper(mark: &str) -> (Child, Kin) {
        let child = Command::new("sleep")
            .arg("60")
            .env(MARK, mark)
            .process_group(0)
            .spawn()
            .unwrap();
        let kin = Kin::new(Pid::from_child(&child), mark.to_owned());
        // On a busy machine the new program may take long to get its environment.
        let until = Instant::now() + Duration::from_secs(10);
        while !kin.has_mark(kin.leader.number) {
            assert!(Instant::now() < until, "the process has no environment");
            thread::sleep(Duration::from_millis(1));
        }
        (child, kin)
    }

    fn ended_by(child: &mut Child) -> Option<i32> {
        std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap())
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let (mut child, mut kin) = sleeper("m1");
        kin.seen.insert(Process {
            number: 7,
            start: 8,
        });
        let read = Kin::parse(&kin.record()).unwrap();
        assert_eq!((read.leader, &read.mark), (kin.leader, &kin.mark));
        assert_eq!(read.seen, kin.seen);
        assert!(read.leader_is_there());
        end(&kin.record());
        assert_eq!(ended_by(&mut child), Some(9));
        for text in ["", "x y\n", "7"] {
            assert!(Kin::parse(text).is_none(), "{text}");
        }
    }

    #[test]
    fn a_foreign_process_with_a_recorded_number_is_left_alone() {
        let (mut other, mut kin) = sleeper("m2");
        kin.leader.start += 1;
        kin.seen.insert(kin.leader);
        kin.mark = "m3".to_owned();
        end(&kin.record());
        assert_eq!(other.try_wait().unwrap(), None, "it must still run");
        other.kill().unwrap();
        other.wait().unwrap();
    }

    #[test]
    fn strays_are_known_by_their_mark_or_by_having_been_seen() {
        let (mut gone, kin) = sleeper("m4");
        let (mut marked, _) = sleeper("m4");
        let (mut neighbour, _) = sleeper("m5");
        kin.kill_strays();
        assert_eq!(ended_by(&mut gone), Some(9));
        assert_eq!(ended_by(&mut marked), Some(9));
        assert_eq!(neighbour.try_wait().unwrap(), None);

        let (mut titled, seen) = sleeper("m6");
        let mut kin = Kin::new(getpid(), "m7".to_owned());
        kin.look();
        assert!(kin.seen.contains(&seen.leader), "it is below this process");
        kin.seen = BTreeSet::from([seen.leader]);
        kin.kill_strays();
        assert_eq!(ended_by(&mut titled), Some(9));
        neighbour.kill().unwrap();
        neighbour.wait().unwrap();
    }
}
