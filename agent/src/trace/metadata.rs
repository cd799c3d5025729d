//! Layouts and what is known of the host in, the text of the CTF 1.8 `metadata` file out.
//!
//! The byte layout is not described here but copied: every field says its size and alignment as
//! [`lkst_probes::layout`] placed it, so a CTF reader arrives at the same offsets. To CTF the head of a record is
//! `{ u16 id; u64 timestamp }`; the six bytes between are alignment padding.
//!
//! INVARIANT: [`super::tsdl::parse`] gives back what [`text`] was given, except that control characters became
//! visible (`\x1b`) and that columns in hexadecimal are integers.

use std::collections::HashSet;
use std::fmt::Write as _;

use lkst_probes::layout::{ColumnLayout, Encoding, RecordLayout};

use super::escape::visible;

/// What the metadata says beside the layouts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TraceInfo {
    /// The session's: one for all that one agent records, as in the heads of its pages.
    pub uuid: [u8; 16],
    /// The host's name.
    pub hostname: String,
    /// `uname -r`.
    pub kernel_release: String,
    /// `/proc/sys/kernel/random/boot_id`: traces with one boot id are on one clock. May be empty.
    pub boot_id: String,
    /// This version of lkst.
    pub lkst_version: String,
    /// The pack.
    pub pack: String,
    /// Wall clock minus boot clock, in nanoseconds.
    pub boot_offset_ns: i64,
    /// The kinds of record. Several may share a name, none an id.
    pub layouts: Vec<RecordLayout>,
    /// More entries of the `env` block: names are identifiers that begin with none of lkst's own.
    pub env: Vec<(String, String)>,
}

/// The first line: by it readers tell plain text from packets.
const FIRST_LINE: &str = "/* CTF 1.8 */\n";

/// The names of the integer types: `u` unsigned, `s` signed, `x` unsigned in hexadecimal, at natural alignment.
pub(super) const TYPES: &str = "\
typealias integer { size = 8; align = 8; signed = false; } := u8;
typealias integer { size = 16; align = 16; signed = false; } := u16;
typealias integer { size = 32; align = 32; signed = false; } := u32;
typealias integer { size = 64; align = 64; signed = false; } := u64;
typealias integer { size = 8; align = 8; signed = true; } := s8;
typealias integer { size = 16; align = 16; signed = true; } := s16;
typealias integer { size = 32; align = 32; signed = true; } := s32;
typealias integer { size = 64; align = 64; signed = true; } := s64;
typealias integer { size = 8; align = 8; signed = false; base = 16; } := x8;
typealias integer { size = 16; align = 16; signed = false; base = 16; } := x16;
typealias integer { size = 32; align = 32; signed = false; base = 16; } := x32;
typealias integer { size = 64; align = 64; signed = false; base = 16; } := x64;
typealias integer { size = 16; align = 8; signed = false; } := length;
typealias integer { size = 8; align = 8; signed = true; encoding = UTF8; } := text;
";

/// The trace block from behind its UUID.
pub(super) const TRACE: &str = "\
  byte_order = le;
  packet.header := struct { u32 magic; u8 uuid[16]; u32 stream_id; u64 stream_instance_id; };
};
";

/// The clock's type and the stream block: the head of a packet, then of a record, as `layout.rs` has them.
pub(super) const STREAM: &str = "\
typealias integer { size = 64; align = 64; signed = false; map = clock.boottime.value; } := time;
stream {
  id = 0;
  packet.context := struct {
    time timestamp_begin; time timestamp_end; u64 content_size; u64 packet_size;
    u64 packet_seq_num; u64 events_discarded; u32 cpu_id;
  };
  event.header := struct { u16 id; time timestamp; };
  event.context := struct { u32 pid; u32 tid; };
};
";

/// Names of `env` entries that begin so hold the exact name of a column that no TSDL identifier can have:
/// `lkst_name_ID_COLUMN`.
pub(super) const NAME_PREFIX: &str = "lkst_name_";

/// The entries of the `env` block that are not [`TraceInfo::env`], in their order, `tracer_name` aside.
pub(super) const SESSION: &str = "session";
/// See [`SESSION`].
pub(super) const OWN_ENV: [&str; 7] = [
    "tracer_name",
    "tracer_version",
    SESSION,
    "boot_id",
    "hostname",
    "kernel_release",
    "pack",
];

/// Nanoseconds of a second.
const SECOND: i64 = 1_000_000_000;

/// The metadata of a trace whose packets carry `uuid`. That is not the session's own where a session leaves several
/// traces: CTF readers take traces of one UUID for parts of one trace.
#[must_use]
pub fn text(info: &TraceInfo, uuid: &[u8; 16]) -> String {
    let mut out = String::from(FIRST_LINE);
    out.push_str(TYPES);
    put(
        &mut out,
        format_args!(
            "trace {{\n  major = 1;\n  minor = 8;\n  uuid = \"{}\";\n",
            uuid_text(uuid)
        ),
    );
    out.push_str(TRACE);

    let mut events = String::new();
    let mut names = Vec::new();
    for layout in &info.layouts {
        event(&mut events, &mut names, layout);
    }

    out.push_str("env {\n");
    let session = uuid_text(&info.uuid);
    let own = [
        "lkst",
        &info.lkst_version,
        &session,
        &info.boot_id,
        &info.hostname,
        &info.kernel_release,
        &info.pack,
    ];
    let own = OWN_ENV.iter().copied().zip(own);
    let more = info
        .env
        .iter()
        .chain(&names)
        .map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in own.chain(more) {
        put(&mut out, format_args!("  {name} = {};\n", quoted(value)));
    }
    out.push_str("};\n");
    // The clock counts from boot, and with its offset from 1970: `absolute` lets other traces be laid beside this one.
    put(
        &mut out,
        format_args!(
            "clock {{\n  name = boottime;\n  freq = 1000000000;\n  absolute = true;\n  offset_s = {};\n  offset = {};\n}};\n",
            info.boot_offset_ns.div_euclid(SECOND),
            info.boot_offset_ns.rem_euclid(SECOND)
        ),
    );
    out.push_str(STREAM);
    out + &events
}

/// One event block. Exact names of columns that need it go to `names`.
fn event(out: &mut String, names: &mut Vec<(String, String)>, layout: &RecordLayout) {
    put(
        out,
        format_args!(
            "event {{\n  id = {};\n  name = {};\n  stream_id = 0;\n  fields := struct {{\n",
            layout.id,
            quoted(&layout.name)
        ),
    );
    for (index, (column, identifiers)) in layout.columns.iter().zip(identifiers(layout)).enumerate() {
        if identifiers.name.strip_prefix('_') != Some(column.name.as_str()) {
            names.push((format!("{NAME_PREFIX}{}_{index}", layout.id), column.name.clone()));
        }
        field(out, column, &identifiers);
    }
    out.push_str("  };\n};\n");
}

/// What a column is called in the metadata.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identifiers {
    /// The field.
    pub name: String,
    /// The field that holds its length, where it is a sequence.
    pub length: Option<String>,
}

/// The identifiers of a layout's columns, in order: each one once in the layout.
#[must_use]
pub fn identifiers(layout: &RecordLayout) -> Vec<Identifiers> {
    let mut taken = HashSet::new();
    let mut of_column = |column: &ColumnLayout| {
        let name = unique(identifier(&column.name), &mut taken);
        let length = match column.encoding {
            Encoding::Sequence { .. } => Some(unique(format!("_{name}_length"), &mut taken)),
            _ => None,
        };
        Identifiers { name, length }
    };
    layout.columns.iter().map(&mut of_column).collect()
}

/// One field; a sequence has its length before it.
fn field(out: &mut String, column: &ColumnLayout, identifiers: &Identifiers) {
    let name = &identifiers.name;
    out.push_str("    ");
    match &column.encoding {
        Encoding::Int { bits, signed } => {
            integer(out, *bits, *signed, column.hex, *bits);
            put(out, format_args!(" {name};\n"));
        }
        // TSDL has no enumeration without names.
        Encoding::Enum(names) if names.is_empty() => put(out, format_args!("u32 {name};\n")),
        Encoding::Enum(names) => {
            out.push_str("enum : u32 { ");
            for (index, (label, value)) in names.iter().enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                put(out, format_args!("{comma}{} = {value}", quoted(label)));
            }
            put(out, format_args!(" }} {name};\n"));
        }
        Encoding::Array { bits, signed, count } => {
            integer(out, *bits, *signed, column.hex, *bits);
            put(out, format_args!(" {name}[{count}];\n"));
        }
        Encoding::Text { bytes } => put(out, format_args!("text {name}[{bytes}];\n")),
        Encoding::String => put(out, format_args!("string {{ encoding = UTF8; }} {name};\n")),
        Encoding::Sequence { bits, signed } => {
            let length = identifiers.length.as_deref().unwrap_or_default();
            put(out, format_args!("length {length};\n    "));
            integer(out, *bits, *signed, column.hex, 8);
            put(out, format_args!(" {name}[{length}];\n"));
        }
    }
}

/// An integer type: one of [`TYPES`] where there is one.
fn integer(out: &mut String, bits: u8, signed: bool, hex: bool, align: u8) {
    match (signed, hex) {
        _ if align != bits || (signed && hex) => put(
            out,
            format_args!(
                "integer {{ size = {bits}; align = {align}; signed = {signed}; base = {}; }}",
                if hex { 16 } else { 10 }
            ),
        ),
        (true, _) => put(out, format_args!("s{bits}")),
        (false, true) => put(out, format_args!("x{bits}")),
        (false, false) => put(out, format_args!("u{bits}")),
    }
}

/// A column's name as a TSDL identifier. CTF readers drop one underscore at the start; with it no name is a keyword.
fn identifier(name: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    std::iter::once('_').chain(name.chars().map(letter)).collect()
}

/// The name, or the name with the first number that nobody has taken.
fn unique(name: String, taken: &mut HashSet<String>) -> String {
    let mut candidate = name.clone();
    let mut number = 2;
    while !taken.insert(candidate.clone()) {
        candidate = format!("{name}_{number}");
        number += 1;
    }
    candidate
}

/// A TSDL string. Control characters have become visible first: readers print the host's name and those of events
/// as they are.
fn quoted(text: &str) -> String {
    let text = visible(text).replace('\\', "\\\\").replace('"', "\\\"");
    format!("\"{text}\"")
}

/// A UUID as it is usually written.
#[must_use]
pub fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut out = String::with_capacity(36);
    for (index, byte) in uuid.iter().enumerate() {
        let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
        put(&mut out, format_args!("{dash}{byte:02x}"));
    }
    out
}

/// Appends; a `String` takes everything.
fn put(out: &mut String, text: std::fmt::Arguments<'_>) {
    let _infallible = out.write_fmt(text);
}
