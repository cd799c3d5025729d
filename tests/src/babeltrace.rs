//! An independent reader of our traces: babeltrace2's text compared with `lkst show --json`, field for field.
//!
//! Both are brought to one form, a JSON object for each record. Records of one instant may come in any order, for two
//! streams have none among them.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use lkst::command::show::{self, ShowOptions};
use lkst::trace::names::NAMES_EVENT;
use lkst::trace::read::Traces;
use lkst::trace::{escape, metadata};
use lkst_probes::layout::Encoding;
use serde_json::{Map, Value, json};

/// True where babeltrace2 is installed. Says so where it is not, and fails the test where the environment has
/// `LKST_REQUIRE_KERNEL=1`: there a test that cannot run is a failure.
pub fn is_installed() -> bool {
    let installed = Command::new("babeltrace2").arg("--version").output().is_ok();
    if !installed {
        println!("skipped: babeltrace2 is not installed");
        let required = std::env::var_os("LKST_REQUIRE_KERNEL").is_some_and(|value| value == "1");
        assert!(
            !required,
            "LKST_REQUIRE_KERNEL=1, and babeltrace2 is not installed"
        );
    }
    installed
}

/// Reads a trace with babeltrace2 and with `lkst show --json`: no warning from either, and the same records. Returns
/// how many. The folder must not hold the same record in two traces: babeltrace2 shows both.
pub fn assert_same_as_show(trace: &Path) -> usize {
    match same_as_show(trace) {
        Ok(records) => records,
        Err(error) => panic!("{}: {error:#}", trace.display()),
    }
}

/// The lines of `lkst show --json`.
///
/// # Errors
/// Where the trace cannot be read, or anything about it is to be told.
pub fn show_json(paths: &[PathBuf]) -> anyhow::Result<Vec<Value>> {
    let options = ShowOptions {
        paths: paths.to_vec(),
        json: true,
        condition: None,
    };
    let mut out = Vec::new();
    let shown = show::run(&options, &mut out, false)?;
    ensure!(shown.problems.is_empty(), "lkst show: {:?}", shown.problems);
    let lines = out.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    let lines = lines.map(serde_json::from_slice).collect::<Result<Vec<_>, _>>()?;
    ensure!(
        lines.len() as u64 == shown.records,
        "{} lines for {} records",
        lines.len(),
        shown.records
    );
    Ok(lines)
}

/// As [`assert_same_as_show`], for a test that goes on.
///
/// # Errors
/// The first difference.
pub fn same_as_show(trace: &Path) -> anyhow::Result<usize> {
    if !is_installed() {
        return Ok(show_json(&[trace.to_owned()])?.len());
    }
    let output = Command::new("babeltrace2")
        .args(["--clock-cycles", "--no-delta"])
        .arg(trace)
        .env("LC_ALL", "C")
        .output()
        .context("cannot run babeltrace2")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.success() && stderr.is_empty(),
        "babeltrace2 says: {stderr}"
    );
    let mut theirs = Vec::new();
    for line in output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
    {
        let text = || String::from_utf8_lossy(line).into_owned();
        theirs.push(parse_line(line).with_context(|| format!("babeltrace2's line {}", text()))?);
    }
    let (threads, theirs): (Vec<Parsed>, Vec<Parsed>) = theirs
        .into_iter()
        .partition(|(_, event, ..)| event == NAMES_EVENT);
    same_names(trace, threads)?;
    let known = Known::of(trace)?;
    let ours = show_json(&[trace.to_owned()])?;
    let mut ours = ours
        .into_iter()
        .map(|line| known.ours(line))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut theirs: Vec<Line> = theirs.into_iter().map(|line| known.split(line)).collect();
    ensure!(
        ours.len() == theirs.len(),
        "{} records, by babeltrace2 {}",
        ours.len(),
        theirs.len()
    );
    ensure!(
        ours.is_sorted_by_key(|line| line.time),
        "lkst show is not in the order of time"
    );
    ours.sort();
    theirs.sort();
    let same = |a: &Line, b: &Line| (a.time, &a.rest) == (b.time, &b.rest);
    for (ours, theirs) in ours.chunk_by(same).zip(theirs.chunk_by(same)) {
        ensure!(
            ours.len() == theirs.len() && same(&ours[0], &theirs[0]) && texts_agree(ours, theirs),
            "differs\n      ours {ours:?}\nbabeltrace {theirs:?}"
        );
    }
    Ok(ours.len())
}

/// Fails where babeltrace2 has other names of threads than we.
fn same_names(trace: &Path, theirs: Vec<Parsed>) -> anyhow::Result<()> {
    let traces = Traces::open(&[trace])?;
    let names = traces.traces.iter().flat_map(|trace| &trace.names);
    let ours: BTreeSet<String> = names.map(|(tid, comm)| json!([tid, comm]).to_string()).collect();
    let mut found = BTreeSet::new();
    for (_, _, [_, pid, tid], fields) in theirs {
        ensure!(
            (&fields["tid"], &fields["pid"]) == (&tid, &pid),
            "of thread {tid}: {fields:?}"
        );
        found.insert(json!([tid, fields["comm"]]).to_string());
    }
    ensure!(
        ours == found,
        "names differ\n      ours {ours:?}\nbabeltrace {found:?}"
    );
    Ok(())
}

/// What is compared of a record.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    time: u64,
    /// All but the texts.
    rest: String,
    /// These, in the order of their names.
    texts: Vec<String>,
}

/// True where each record has one of the other side that has its texts.
///
/// For an empty text babeltrace2 2.0.4 may show the text of an earlier event whose memory it uses again (fixed later,
/// by change 4528 in its review system). So an empty one of ours agrees with any.
fn texts_agree(ours: &[Line], theirs: &[Line]) -> bool {
    let empty = |line: &&Line| line.texts.iter().filter(|text| text.is_empty()).count();
    let mut ours: Vec<&Line> = ours.iter().collect();
    ours.sort_by_key(empty);
    let mut theirs: Vec<&Line> = theirs.iter().collect();
    ours.into_iter().all(|ours| {
        let agrees = |theirs: &&Line| {
            let mut pairs = ours.texts.iter().zip(&theirs.texts);
            pairs.all(|(ours, theirs)| ours.is_empty() || ours == theirs)
        };
        let found = theirs.iter().position(agrees);
        found.map(|index| theirs.swap_remove(index)).is_some()
    })
}

/// What a line does not say, by event and field as babeltrace2 names it.
struct Known {
    /// What babeltrace2 calls each column, by event and columns.
    names: HashMap<String, HashMap<String, String>>,
    /// Bits of each signed integer that is shown in hexadecimal: babeltrace2 shows its bits, and so no sign.
    signed_in_hex: HashMap<(String, String), u8>,
    /// Texts.
    texts: HashSet<(String, String)>,
}

impl Known {
    fn of(trace: &Path) -> anyhow::Result<Known> {
        let mut known = Known {
            names: HashMap::new(),
            signed_in_hex: HashMap::new(),
            texts: HashSet::new(),
        };
        let traces = Traces::open(&[trace])?;
        for class in traces.traces.iter().flat_map(|trace| trace.classes.all()) {
            let layout = &class.event.layout;
            let shown: Vec<String> = metadata::identifiers(layout).iter().map(shown_name).collect();
            let key = key_of(
                &layout.name,
                layout.columns.iter().map(|column| column.name.as_str()),
            );
            let names = layout.columns.iter().map(|column| column.name.clone());
            known
                .names
                .insert(key, names.zip(shown.iter().cloned()).collect());
            for (column, shown) in layout.columns.iter().zip(shown) {
                let name = (layout.name.clone(), shown);
                match column.encoding {
                    Encoding::Int { bits, signed: true }
                    | Encoding::Array {
                        bits, signed: true, ..
                    }
                    | Encoding::Sequence { bits, signed: true }
                        if column.hex =>
                    {
                        known.signed_in_hex.insert(name, bits);
                    }
                    Encoding::Text { .. } | Encoding::String => {
                        known.texts.insert(name);
                    }
                    _ => {}
                }
            }
        }
        Ok(known)
    }

    /// A line of ours.
    fn ours(&self, line: Value) -> anyhow::Result<Line> {
        let time = line["time_ns"].as_u64().context("no time")?;
        let event = line["event"].as_str().context("no event")?;
        let fields = line["fields"].as_object().context("no fields")?;
        let names = self.names.get(&key_of(event, fields.keys().map(String::as_str)));
        let names = names.context("a record with columns that no layout has")?;
        let fields = fields.iter().map(|(name, value)| {
            let name = names.get(name).cloned().unwrap_or_default();
            let value = match self.signed_in_hex.get(&(event.to_owned(), name.clone())) {
                Some(bits) => without_sign(value, *bits),
                None => value.clone(),
            };
            (name, value)
        });
        let head = [&line["cpu"], &line["pid"], &line["tid"]].map(Value::clone);
        Ok(self.split((time, event.to_owned(), head, fields.collect())))
    }

    fn split(&self, (time, event, [cpu, pid, tid], fields): Parsed) -> Line {
        let is_text = |name: &String| self.texts.contains(&(event.clone(), name.clone()));
        let (texts, fields): (Map<_, _>, Map<_, _>) = fields.into_iter().partition(|(name, _)| is_text(name));
        let rest = json!({"event": event, "cpu": cpu, "pid": pid, "tid": tid, "fields": fields}).to_string();
        let texts = texts
            .into_iter()
            .map(|(_, text)| text.as_str().unwrap_or("no text").to_owned());
        Line {
            time,
            rest,
            texts: texts.collect(),
        }
    }
}

/// The time, the event, `[cpu, pid, tid]` and the fields.
type Parsed = (u64, String, [Value; 3], Map<String, Value>);

/// A field's name as babeltrace2 shows it: the identifier without one leading underscore.
fn shown_name(identifiers: &metadata::Identifiers) -> String {
    identifiers.name[1..].to_owned()
}

/// An event and its columns, in whatever order they are given.
fn key_of<'n>(event: &str, columns: impl Iterator<Item = &'n str>) -> String {
    let mut columns: Vec<&str> = columns.collect();
    columns.sort_unstable();
    format!("{event:?}{columns:?}")
}

fn without_sign(value: &Value, bits: u8) -> Value {
    match value {
        Value::Array(items) => items.iter().map(|item| without_sign(item, bits)).collect(),
        _ => match value.as_i64() {
            Some(number) => (number as u64 & u64::MAX >> (64 - bits)).into(),
            None => value.clone(),
        },
    }
}

/// A line of babeltrace2: `[cycles] host system:event: { cpu_id = 3 }, { pid = 1, tid = 2 }, { field = value, … }`.
fn parse_line(line: &[u8]) -> anyhow::Result<Parsed> {
    let mut text = Text { rest: line };
    text.expect("[")?;
    let time = text.until("] ")?.parse()?;
    let head = text.until(": { cpu_id")?;
    let event = head.split_once(' ').map_or(&*head, |(_, event)| event);
    text.rest = &line[line.len() - text.rest.len() - "{ cpu_id".len()..];
    let packet = text.structure()?;
    text.expect(", ")?;
    let context = text.structure()?;
    text.expect(", ")?;
    let mut fields = text.structure()?;
    ensure!(
        text.rest.is_empty(),
        "more behind the fields: {}",
        String::from_utf8_lossy(text.rest)
    );
    drop_lengths(&mut fields);
    let fields: Map<String, Value> = fields.into_iter().collect();
    let find = |from: &[(String, Value)], name| {
        let found = from.iter().find(|(other, _)| other == name);
        found.map_or(Value::Null, |(_, value)| value.clone())
    };
    let head = [
        find(&packet, "cpu_id"),
        find(&context, "pid"),
        find(&context, "tid"),
    ];
    Ok((time, event.to_owned(), head, fields))
}

/// Takes out the lengths of sequences, which CTF has as fields of their own: `_NAME_length` before `NAME`.
fn drop_lengths(fields: &mut Vec<(String, Value)>) {
    let is_length = |pair: &[(String, Value)]| match pair {
        [(length, Value::Number(count)), (name, Value::Array(items))] => {
            let rest = length.strip_prefix(&format!("_{name}_length"));
            rest.is_some() && count.as_u64() == Some(items.len() as u64)
        }
        _ => false,
    };
    let mut index = 0;
    while index + 1 < fields.len() {
        if is_length(&fields[index..index + 2]) {
            fields.remove(index);
        }
        index += 1;
    }
}

/// What is left of a line.
struct Text<'a> {
    rest: &'a [u8],
}

impl Text<'_> {
    fn take(&mut self, start: &str) -> bool {
        let taken = self.rest.strip_prefix(start.as_bytes());
        self.rest = taken.unwrap_or(self.rest);
        taken.is_some()
    }

    fn expect(&mut self, start: &str) -> anyhow::Result<()> {
        ensure!(
            self.take(start),
            "expected `{start}` at {}",
            String::from_utf8_lossy(self.rest)
        );
        Ok(())
    }

    /// All before `end`, which is taken too.
    fn until(&mut self, end: &str) -> anyhow::Result<String> {
        let at = self
            .rest
            .windows(end.len())
            .position(|window| window == end.as_bytes());
        let at = at.with_context(|| format!("no `{end}`"))?;
        let before = escape::lossless(&self.rest[..at]);
        self.rest = &self.rest[at + end.len()..];
        Ok(before)
    }

    /// `{ name = value, … }`
    fn structure(&mut self) -> anyhow::Result<Vec<(String, Value)>> {
        let mut fields = Vec::new();
        self.expect("{ ")?;
        if self.take("}") {
            return Ok(fields);
        }
        loop {
            let name = self.until(" = ")?;
            fields.push((name, self.value()?));
            if self.take(" }") {
                return Ok(fields);
            }
            self.expect(", ")?;
        }
    }

    fn value(&mut self) -> anyhow::Result<Value> {
        if self.take("\"") {
            return Ok(escape::lossless(&self.string()?).into());
        }
        if self.take("( ") {
            return self.enumerator();
        }
        if self.take("[ ") {
            let mut items = Vec::new();
            while !self.take("]") {
                self.expect("[")?;
                self.until("] = ")?;
                items.push(self.value()?);
                self.take(",");
                self.expect(" ")?;
            }
            return Ok(items.into());
        }
        let end = self
            .rest
            .iter()
            .position(|byte| !byte.is_ascii_alphanumeric() && *byte != b'-');
        let (number, rest) = self.rest.split_at(end.unwrap_or(self.rest.len()));
        self.rest = rest;
        let number = std::str::from_utf8(number)?;
        Ok(match number.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16)?.into(),
            None if number.starts_with('-') => number.parse::<i64>()?.into(),
            None => number.parse::<u64>()?.into(),
        })
    }

    /// What is left of `( "A", "B" : container = 1 )`; the first name, or the number of `( <unknown> : … )`.
    fn enumerator(&mut self) -> anyhow::Result<Value> {
        let mut names = Vec::new();
        if !self.take("<unknown>") {
            loop {
                self.expect("\"")?;
                names.push(escape::lossless(&self.string()?));
                if !self.take(", ") {
                    break;
                }
            }
        }
        self.expect(" : container = ")?;
        let number = self.value()?;
        self.expect(" )")?;
        Ok(names.into_iter().next().map_or(number, Value::from))
    }

    /// What is left of a string, as C writes it.
    fn string(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut out = Vec::new();
        loop {
            match self.rest {
                [b'"', rest @ ..] => {
                    self.rest = rest;
                    return Ok(out);
                }
                [b'\\', b'x', high, low, rest @ ..] => {
                    let digits = [*high, *low];
                    out.push(u8::from_str_radix(std::str::from_utf8(&digits)?, 16)?);
                    self.rest = rest;
                }
                [b'\\', escaped, rest @ ..] => {
                    out.push(match escaped {
                        b'a' => 7,
                        b'b' => 8,
                        b'e' => 27,
                        b'f' => 12,
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'v' => 11,
                        other => *other,
                    });
                    self.rest = rest;
                }
                [byte, rest @ ..] => {
                    out.push(*byte);
                    self.rest = rest;
                }
                [] => bail!("a string without an end"),
            }
        }
    }
}

/// A trace's records as `lkst show` writes them for people, for messages of tests that fail.
pub fn show_text(trace: &Path) -> String {
    let options = ShowOptions {
        paths: vec![trace.to_owned()],
        json: false,
        condition: None,
    };
    let mut out = Vec::new();
    match show::run(&options, &mut out, false) {
        Ok(shown) => {
            let mut text = String::from_utf8_lossy(&out).into_owned();
            for problem in shown.problems {
                let _infallible = writeln!(text, "{problem}");
            }
            text
        }
        Err(error) => format!("{error:#}"),
    }
}
