//! `lkst show`: traces in, a line for each record out, by time.
//!
//! Text has the form that users of ftrace and perf know, `comm-tid [cpu] seconds.nanos: system:event: field=value …`;
//! with `--json` each line is an object. Both are put together by hand, with all that is constant for a class made
//! once: the formatting of ten million records is where the time goes.
//!
//! INVARIANT: no control character of a trace reaches the output.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;
use lkst_probes::layout::ColumnLayout;

use crate::trace::decode::{Int, Ints, Value};
use crate::trace::escape::{push_json, push_shown};
use crate::trace::filter::Condition;
use crate::trace::read::{Class, Filter, ReadError, RecordView, Traces};

/// What `lkst show` was asked for.
#[derive(Debug, Clone, Default)]
pub struct ShowOptions {
    /// Traces, or folders of traces.
    pub paths: Vec<PathBuf>,
    /// A JSON object a line.
    pub json: bool,
    /// Only records for which this condition of the rule language holds.
    pub condition: Option<String>,
}

/// What was shown.
#[derive(Debug, Default)]
pub struct Shown {
    /// Records.
    pub records: u64,
    /// Records that found no room when they were to be recorded, as the traces say.
    pub discarded: u64,
    /// What is wrong with the traces; the rest of them was shown.
    pub problems: Vec<ReadError>,
}

/// How much text is gathered before it is written.
const CHUNK_BYTES: usize = 64 << 10;

/// Shows the records. A reader of `out` that goes away ends it quietly.
///
/// # Errors
/// Where there is no trace, the condition is wrong, or `out` cannot be written.
pub fn run(options: &ShowOptions, out: &mut dyn Write, colour: bool) -> anyhow::Result<Shown> {
    let mut traces = Traces::open(&options.paths)?;
    let problems = std::mem::take(&mut traces.problems);
    let condition = options.condition.as_deref();
    let mut condition = condition.map(|text| Condition::new(text, &traces)).transpose()?;
    let filter = condition.as_mut().map(|filter| filter as &mut dyn Filter);
    let mut shown = Shown {
        problems,
        ..Shown::default()
    };
    match write_all(
        &traces,
        filter,
        &mut Writer::new(&traces, options.json, colour),
        out,
        &mut shown,
    ) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(shown),
        result => result.map(|()| shown).context("cannot write the records"),
    }
}

fn write_all(
    traces: &Traces,
    mut filter: Option<&mut dyn Filter>,
    writer: &mut Writer<'_>,
    out: &mut dyn Write,
    shown: &mut Shown,
) -> io::Result<()> {
    let mut records = traces.records();
    let mut text = Vec::with_capacity(CHUNK_BYTES * 2);
    loop {
        match records.next_record() {
            Ok(Some(record)) => {
                if filter.as_mut().is_none_or(|filter| filter.matches(&record)) {
                    writer.record(&mut text, &record);
                    shown.records += 1;
                }
            }
            Ok(None) => break,
            Err(problem) => shown.problems.push(problem),
        }
        if text.len() >= CHUNK_BYTES {
            out.write_all(&text)?;
            text.clear();
        }
    }
    shown.discarded = records.discarded();
    out.write_all(&text)?;
    out.flush()
}

/// What the lines of a class have in common.
struct ClassText {
    /// The event's name with what surrounds it.
    event: Vec<u8>,
    /// What comes before the value of each column.
    columns: Vec<Vec<u8>>,
}

/// How a thread is shown. Empty text: nobody is in this place yet.
#[derive(Clone, Default)]
struct Thread {
    trace: usize,
    tid: u32,
    text: Vec<u8>,
}

/// How many threads are remembered: a power of two.
const THREADS: usize = 1024;

/// Writes lines.
struct Writer<'t> {
    json: bool,
    colour: bool,
    /// By [`Class::index`].
    classes: Vec<Option<ClassText>>,
    /// By the stream's index: what the lines of a stream have in common.
    streams: Vec<Vec<u8>>,
    /// Threads as shown, each in the place that the low bits of its number say.
    threads: Vec<Thread>,
    traces: &'t Traces,
}

impl<'t> Writer<'t> {
    fn new(traces: &'t Traces, json: bool, colour: bool) -> Self {
        let mut writer = Writer {
            json,
            colour,
            classes: Vec::new(),
            streams: Vec::new(),
            threads: vec![Thread::default(); THREADS],
            traces,
        };
        writer.classes.resize_with(traces.class_count, || None);
        writer.streams = traces
            .streams
            .iter()
            .map(|stream| writer.stream_text(stream))
            .collect();
        writer
    }

    fn stream_text(&self, stream: &crate::trace::read::Stream) -> Vec<u8> {
        let mut text = Vec::new();
        if self.json {
            let trace = self.traces.traces.get(stream.trace);
            text.extend_from_slice(b",\"cpu\":");
            push_number(&mut text, stream.cpu);
            text.extend_from_slice(b",\"pack\":");
            push_json(
                &mut text,
                trace.map_or("", |trace| &trace.metadata.info.pack).as_bytes(),
            );
            text.extend_from_slice(b",\"buffer\":");
            push_json(&mut text, stream.buffer.as_bytes());
        } else {
            text.extend_from_slice(format!(" [{:03}] ", stream.cpu).as_bytes());
        }
        text
    }

    fn class_text(&self, class: &Class) -> ClassText {
        let layout = &class.event.layout;
        let mut event = Vec::new();
        if self.json {
            event.extend_from_slice(b",\"event\":");
            push_json(&mut event, layout.name.as_bytes());
            event.extend_from_slice(b",\"pid\":");
        } else {
            let (on, off) = if self.colour {
                ("\x1b[36m", "\x1b[0m")
            } else {
                ("", "")
            };
            event.extend_from_slice(b": ");
            event.extend_from_slice(on.as_bytes());
            push_shown(&mut event, layout.name.as_bytes(), false);
            event.extend_from_slice(off.as_bytes());
            event.push(b':');
        }
        let columns = layout.columns.iter().enumerate();
        let columns = columns
            .map(|(index, column)| self.column_text(index, column))
            .collect();
        ClassText { event, columns }
    }

    fn column_text(&self, index: usize, column: &ColumnLayout) -> Vec<u8> {
        let mut text = Vec::new();
        if self.json {
            if index > 0 {
                text.push(b',');
            }
            push_json(&mut text, column.name.as_bytes());
            text.push(b':');
        } else {
            let (on, off) = if self.colour {
                ("\x1b[2m", "\x1b[0m")
            } else {
                ("", "")
            };
            text.push(b' ');
            text.extend_from_slice(on.as_bytes());
            push_shown(&mut text, column.name.as_bytes(), false);
            text.push(b'=');
            text.extend_from_slice(off.as_bytes());
        }
        text
    }

    fn record(&mut self, out: &mut Vec<u8>, record: &RecordView<'_>) {
        let index = record.class.index;
        if self.classes.get(index).is_some_and(Option::is_none) {
            let text = self.class_text(record.class);
            if let Some(place) = self.classes.get_mut(index) {
                *place = Some(text);
            }
        }
        let (trace, tid) = (record.stream.trace, record.tid());
        let Some(thread) = self.threads.get_mut(tid as usize % THREADS) else {
            return;
        };
        if thread.text.is_empty() || (thread.trace, thread.tid) != (trace, tid) {
            (thread.trace, thread.tid) = (trace, tid);
            thread.text.clear();
            push_thread(&mut thread.text, record, self.json);
        }
        let thread = &thread.text;
        let Some(Some(class)) = self.classes.get(index) else {
            return;
        };
        let stream = self
            .streams
            .get(record.stream.index)
            .map_or(&[][..], Vec::as_slice);
        if self.json {
            out.extend_from_slice(b"{\"time_ns\":");
            push_number(out, record.time);
            out.extend_from_slice(stream);
            out.extend_from_slice(&class.event);
            push_number(out, record.pid());
            out.extend_from_slice(thread);
            out.extend_from_slice(b",\"fields\":{");
        } else {
            out.extend_from_slice(thread);
            out.extend_from_slice(stream);
            push_seconds(out, record.time);
            out.extend_from_slice(&class.event);
        }
        for ((column, value), before) in record.values().zip(&class.columns) {
            out.extend_from_slice(before);
            if self.json {
                push_json_value(out, value);
            } else {
                push_value(out, column.hex, value);
            }
        }
        out.extend_from_slice(if self.json { b"}}\n" } else { b"\n" });
    }
}

/// `comm-tid`, aligned as ftrace does it, or `,"tid":…,"comm":…`.
fn push_thread(out: &mut Vec<u8>, record: &RecordView<'_>, json: bool) {
    let tid = record.tid();
    let comm = record.comm();
    if json {
        out.extend_from_slice(b",\"tid\":");
        push_number(out, tid);
        out.extend_from_slice(b",\"comm\":");
        match comm {
            Some(comm) => push_json(out, comm.as_bytes()),
            None => out.extend_from_slice(b"null"),
        }
        return;
    }
    let mut name = Vec::new();
    push_shown(&mut name, comm.unwrap_or("<...>").as_bytes(), false);
    let width = String::from_utf8_lossy(&name).chars().count();
    out.extend(std::iter::repeat_n(b' ', 16_usize.saturating_sub(width)));
    out.extend_from_slice(&name);
    out.extend_from_slice(format!("-{tid:<7}").as_bytes());
}

fn push_number(out: &mut Vec<u8>, number: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// `seconds.nanos`
fn push_seconds(out: &mut Vec<u8>, time_ns: u64) {
    const SECOND: u64 = 1_000_000_000;
    push_number(out, time_ns / SECOND);
    // The nanoseconds with a one before them, which the point replaces: all nine digits.
    let at = out.len();
    push_number(out, SECOND + time_ns % SECOND);
    if let Some(one) = out.get_mut(at) {
        *one = b'.';
    }
}

fn push_int(out: &mut Vec<u8>, hex: bool, int: Int) {
    if hex {
        push_hex(out, int.stored());
    } else if int.signed {
        push_number(out, int.extended as i64);
    } else {
        push_number(out, int.extended);
    }
}

fn push_hex(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(b"0x");
    let digits = (64 - (number | 1).leading_zeros()).div_ceil(4);
    for digit in (0..digits).rev() {
        let nibble = (number >> (digit * 4) & 15) as u8;
        out.push(if nibble < 10 {
            b'0' + nibble
        } else {
            b'a' + nibble - 10
        });
    }
}

fn push_ints(out: &mut Vec<u8>, hex: bool, ints: Ints<'_>) {
    out.push(b'[');
    for (index, int) in ints.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        push_int(out, hex, int);
    }
    out.push(b']');
}

/// A value for people. Text is in quotes where it would not be clear without them where it ends.
fn push_value(out: &mut Vec<u8>, hex: bool, value: Value<'_>) {
    match value {
        Value::Int(int) => push_int(out, hex, int),
        Value::Ints(ints) => push_ints(out, hex, ints),
        Value::Enum(_, Some(name)) => push_text(out, name.as_bytes()),
        Value::Enum(number, None) => push_number(out, number),
        Value::Text(text) => push_text(out, text),
    }
}

fn push_text(out: &mut Vec<u8>, text: &[u8]) {
    let clear = !text.is_empty()
        && text
            .iter()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'"' | b'=' | b'\\'));
    if clear {
        out.extend_from_slice(text);
    } else {
        push_shown(out, text, true);
    }
}

/// A value for programs: numbers are decimal, an enumerator is its name.
fn push_json_value(out: &mut Vec<u8>, value: Value<'_>) {
    match value {
        Value::Int(int) => push_int(out, false, int),
        Value::Ints(ints) => push_ints(out, false, ints),
        Value::Enum(_, Some(name)) => push_json(out, name.as_bytes()),
        Value::Enum(number, None) => push_number(out, number),
        Value::Text(text) => push_json(out, text),
    }
}
