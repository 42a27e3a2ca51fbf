//! Log lines to systemd's journal: each value is a field of its own, as `KVLENS_WORKER`, by which
//! `journalctl` finds it, and all of them stand in the message, which is what it shows.

use std::fmt::{Debug, Write as _};
use std::io::{self, Write as _};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

/// Where journald listens.
pub(crate) const SOCKET: &str = "/run/systemd/journal/socket";

/// Longest value that is sent, in bytes: a line with a dozen of them stays within one datagram.
const VALUE_BYTES_MAX: usize = 8 << 10;

/// Longest name of a field that the journal takes.
const NAME_BYTES_MAX: usize = 64;

/// Whether a stream is the one by which systemd has connected this process to the journal, as it says
/// in `$JOURNAL_STREAM`.
pub(crate) fn is_journal(stream: impl AsFd, told: Option<&str>) -> bool {
    let Some((device, inode)) = told.and_then(|told| told.split_once(':')) else {
        return false;
    };
    let is = |text: &str, number: u64| text.parse() == Ok(number);
    rustix::fs::fstat(stream).is_ok_and(|found| is(device, found.st_dev) && is(inode, found.st_ino))
}

/// Writes log lines to a journal.
#[derive(Debug)]
pub(crate) struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    /// Lines that it had no room for, not told of yet.
    lost: AtomicU64,
}

impl Journal {
    /// A journal whose daemon listens at `path`.
    ///
    /// # Errors
    /// When nobody does.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        // A request waits for no log: lines that a busy journal does not take are lost, and counted.
        socket.set_nonblocking(true)?;
        // It ignores this; an absent one does not.
        socket.send_to(&[], path)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            lost: AtomicU64::new(0),
        })
    }

    fn send(&self, mut entry: Entry) {
        let lost = self.lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            entry.put("lost_log_lines", &lost.to_string());
        }
        let sent = self.socket.send_to(entry.finish(), &self.path);
        if sent.is_ok() {
            return;
        }
        self.lost.fetch_add(lost + 1, Ordering::Relaxed);
        if let "3" | "4" = entry.priority {
            // What somebody must see goes where the journal may find it all the same; where that is
            // closed too, nobody is left to tell.
            let line = entry.message.replace(char::is_control, " ");
            let _ = writeln!(io::stderr(), "<{}>{line}", entry.priority);
        }
    }
}

impl<S> Layer<S> for Journal
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let mut values = Values::default();
        attributes.record(&mut values);
        if let Some(span) = context.span(id) {
            span.extensions_mut().insert(values);
        }
    }

    fn on_record(&self, id: &Id, record: &Record<'_>, context: Context<'_, S>) {
        let span = context.span(id);
        if let Some(values) = span.and_then(|span| span.extensions_mut().remove::<Values>()) {
            let mut values = values;
            record.record(&mut values);
            if let Some(span) = context.span(id) {
                span.extensions_mut().insert(values);
            }
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut entry = Entry::new(event);
        let spans = context.event_scope(event).into_iter().flatten();
        for span in spans {
            if let Some(values) = span.extensions().get::<Values>() {
                values
                    .0
                    .iter()
                    .for_each(|(name, value)| entry.put(name, value));
            }
        }
        let mut values = Values::default();
        event.record(&mut values);
        for (name, value) in &values.0 {
            match *name {
                "message" => entry.message.insert_str(0, value),
                // Where a library that knows only the crate `log` has written it.
                name if name.starts_with("log.") => entry.field(&field_name(name), value),
                _ => entry.put(name, value),
            }
        }
        self.send(entry);
    }
}

/// Fields and what they say, in their order.
#[derive(Debug, Default)]
struct Values(Vec<(&'static str, String)>);

impl Visit for Values {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}

/// One line as the journal's native protocol has it: fields, each with its length before its value.
#[derive(Debug, Default)]
struct Entry {
    priority: &'static str,
    fields: Vec<u8>,
    message: String,
}

impl Entry {
    fn new(event: &Event<'_>) -> Self {
        let mut entry = Self::default();
        let about = event.metadata();
        // As syslog counts: 3 is an error, 6 what is told, 7 what helps to find faults.
        let priority = match *about.level() {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        entry.priority = priority;
        entry.field("PRIORITY", priority);
        entry.field("SYSLOG_IDENTIFIER", "kvlens");
        entry.field("KVLENS_TARGET", about.target());
        if let (Some(file), Some(line)) = (about.file(), about.line()) {
            entry.field("CODE_FILE", file);
            entry.field("CODE_LINE", &line.to_string());
        }
        entry
    }

    /// Adds a value as a field and to the message.
    fn put(&mut self, name: &str, value: &str) {
        self.field(&field_name(name), value);
        let value = shortened(value);
        let is_word = !value.is_empty()
            && value
                .chars()
                .all(|c| c.is_alphanumeric() || "_-.:/%+".contains(c));
        // Writing to a string does not fail.
        let _ = match is_word {
            true => write!(self.message, " {name}={value}"),
            false => write!(self.message, " {name}={value:?}"),
        };
    }

    fn field(&mut self, name: &str, value: &str) {
        let value = shortened(value);
        self.fields.extend(name.as_bytes());
        self.fields.push(b'\n');
        self.fields.extend((value.len() as u64).to_le_bytes());
        self.fields.extend(value.as_bytes());
        self.fields.push(b'\n');
    }

    /// All of it, the message last.
    fn finish(&mut self) -> &[u8] {
        let message = std::mem::take(&mut self.message);
        self.field("MESSAGE", &message);
        self.message = message;
        &self.fields
    }
}

/// The journal drops a field whose name has anything but capitals, digits and underscores.
fn field_name(name: &str) -> String {
    let capital = |c: char| match c.to_ascii_uppercase() {
        c if c.is_ascii_alphanumeric() => c,
        _ => '_',
    };
    let name = "kvlens_".chars().chain(name.chars());
    name.map(capital).take(NAME_BYTES_MAX).collect()
}

fn shortened(value: &str) -> &str {
    &value[..value.floor_char_boundary(VALUE_BYTES_MAX)]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tracing::{error, info, info_span};
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;

    /// The fields of a datagram.
    fn read(mut datagram: &[u8]) -> BTreeMap<String, String> {
        let mut fields = BTreeMap::new();
        while let Some(end) = datagram.iter().position(|byte| *byte == b'\n') {
            let (name, rest) = datagram.split_at(end);
            let (length, rest) = rest[1..].split_first_chunk().unwrap();
            let (value, rest) = rest.split_at(u64::from_le_bytes(*length) as usize);
            let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
            assert_eq!(fields.insert(text(name), text(value)), None);
            datagram = &rest[1..];
        }
        fields
    }

    #[test]
    fn values_are_fields_and_stand_in_the_message() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        assert!(Journal::open(&path).is_err(), "nobody listens");
        let daemon = UnixDatagram::bind(&path).unwrap();
        let journal = Journal::open(&path).unwrap();
        let mut buffer = vec![0; 1 << 20];
        let mut next = || {
            let length = daemon.recv(&mut buffer).unwrap();
            read(&buffer[..length])
        };
        assert!(next().is_empty(), "the question whether anybody listens");
        let subscriber = tracing_subscriber::registry().with(journal);
        tracing::subscriber::with_default(subscriber, || {
            let worker = "gpu-0";
            info!(worker, overlap_blocks = 6, cause = "a\nb c", "routed");
            let _entered = info_span!("kv_events", %worker, rank = 1).entered();
            error!(text = "ä".repeat(VALUE_BYTES_MAX), "too long");
        });
        let fields = next();
        let rows = [
            ("PRIORITY", "6"),
            ("SYSLOG_IDENTIFIER", "kvlens"),
            ("KVLENS_WORKER", "gpu-0"),
            ("KVLENS_OVERLAP_BLOCKS", "6"),
            ("KVLENS_CAUSE", "a\nb c"),
            (
                "MESSAGE",
                "routed worker=gpu-0 overlap_blocks=6 cause=\"a\\nb c\"",
            ),
        ];
        for (name, value) in rows {
            assert_eq!(fields[name], value, "{fields:?}");
        }
        let fields = next();
        assert_eq!(fields["PRIORITY"], "3");
        assert_eq!(fields["KVLENS_WORKER"], "gpu-0", "of its span");
        assert_eq!(fields["KVLENS_TEXT"].len(), VALUE_BYTES_MAX);
        assert!(fields["MESSAGE"].starts_with("too long worker=gpu-0 rank=1 text="));
    }

    #[test]
    fn names_are_such_as_the_journal_takes() {
        for (name, field) in [
            ("request_id", "KVLENS_REQUEST_ID"),
            ("log.target", "KVLENS_LOG_TARGET"),
            ("größe", "KVLENS_GR__E"),
        ] {
            assert_eq!(field_name(name), field);
        }
        assert_eq!(field_name(&"x".repeat(99)).len(), NAME_BYTES_MAX);
    }

    #[test]
    fn a_stream_is_the_journal_where_systemd_says_so() {
        let file = tempfile::tempfile().unwrap();
        let found = rustix::fs::fstat(&file).unwrap();
        let told = format!("{}:{}", found.st_dev, found.st_ino);
        assert!(is_journal(&file, Some(&told)));
        for told in [None, Some(""), Some("1:2"), Some(&*format!("{told}0"))] {
            assert!(!is_journal(&file, told), "{told:?}");
        }
    }
}
