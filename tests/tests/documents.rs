//! The documents against the code that they describe.
//!
//! `docs/diagnostics.md` lists every code, in the order of `codes.rs` and in its words; `LKST_BLESS=1` writes the list
//! anew, and so it does with the list of metrics in `docs/control.md`, which also has every request and every key of the status. What
//! the README tells people to type is what `.ci/run` types.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use lkst::control::Request;
use lkst::status::{
    BufferStatus, EventStatus, LastFiring, PackPhase, PackStatus, Reload, RuleStatus, SetStatus, Status,
};
use serde_json::Value;

/// The list in `docs/diagnostics.md` stands between these two lines.
const BEGIN: &str = "<!-- codes: begin -->\n";
const END: &str = "<!-- codes: end -->\n";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(root().join(path)).with_context(|| path.to_owned())
}

fn table() -> Result<String> {
    let mut table = String::from("| code | meaning |\n|---|---|\n");
    for code in lkst_rules::codes::all() {
        writeln!(table, "| {} | {} |", code.code, code.meaning.replace('|', "\\|"))?;
    }
    Ok(table)
}

#[test]
fn every_code_is_documented() -> Result<()> {
    let path = "docs/diagnostics.md";
    let text = read(path)?;
    let (before, rest) = text.split_once(BEGIN).context("no line that begins the list")?;
    let (_, after) = rest.split_once(END).context("no line that ends the list")?;
    let should = format!("{before}{BEGIN}\n{}\n{END}{after}", table()?);
    if std::env::var_os("LKST_BLESS").is_some_and(|value| value == "1") {
        fs::write(root().join(path), should)?;
        return Ok(());
    }
    ensure!(text == should, "{path} is stale: run this test with LKST_BLESS=1");
    Ok(())
}

#[test]
fn the_readme_and_the_gate_type_the_same() -> Result<()> {
    let readme = read("README.md")?;
    let gate = read(".ci/run")?;
    for name in ["trace_command", "test_command"] {
        let (_, rest) = gate
            .split_once(&format!("{name}=$(cat <<'END'\n"))
            .context(name)?;
        let (command, _) = rest.split_once("\nEND\n").context(name)?;
        ensure!(
            readme.contains(&format!("```sh\n{command}\n```\n")),
            "the README does not have the gate's {name} as a block of its own: {command}"
        );
    }
    Ok(())
}

#[test]
fn every_example_says_how_to_run_it() -> Result<()> {
    let mut examples = 0;
    for entry in fs::read_dir(root().join("examples/rules"))? {
        let path = entry?.path();
        let text = fs::read_to_string(&path)?;
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        ensure!(
            text.starts_with("# "),
            "{name} does not begin with what it is for"
        );
        ensure!(
            text.contains(&format!("examples/rules/{name}")),
            "{name} does not say how to run it"
        );
        examples += 1;
    }
    ensure!(examples > 0, "there are no examples");
    Ok(())
}

/// The list in `docs/control.md` stands between these two lines.
const METRICS_BEGIN: &str = "<!-- metrics: begin -->\n";
const METRICS_END: &str = "<!-- metrics: end -->\n";

/// A status that has one of each thing.
fn full_status() -> Status {
    Status {
        last_reload: Some(Reload::default()),
        packs: vec![PackStatus {
            sets: vec![SetStatus::default()],
            buffers: vec![BufferStatus::default()],
            rules: vec![RuleStatus {
                last: Some(LastFiring::default()),
                ..RuleStatus::default()
            }],
            events: vec![EventStatus {
                skipped: Some(0),
                ..EventStatus::default()
            }],
            ..PackStatus::default()
        }],
        ..Status::default()
    }
}

#[test]
fn every_metric_is_documented() -> Result<()> {
    let path = "docs/control.md";
    let text = read(path)?;
    let (before, rest) = text
        .split_once(METRICS_BEGIN)
        .context("no line that begins the list")?;
    let (_, after) = rest
        .split_once(METRICS_END)
        .context("no line that ends the list")?;
    let mut table = String::from("| metric | kind | is |\n|---|---|---|\n");
    let metrics = lkst::metrics::render(&full_status());
    let mut lines = metrics.lines().filter_map(|line| line.strip_prefix("# "));
    while let (Some(help), Some(kind)) = (lines.next(), lines.next()) {
        let help = help.strip_prefix("HELP ").and_then(|help| help.split_once(' '));
        let kind = kind.strip_prefix("TYPE ").and_then(|kind| kind.split_once(' '));
        let (Some((name, help)), Some((_, kind))) = (help, kind) else {
            anyhow::bail!("not as metrics are written");
        };
        writeln!(table, "| `{name}` | {kind} | {help} |")?;
    }
    let should = format!("{before}{METRICS_BEGIN}\n{table}\n{METRICS_END}{after}");
    if std::env::var_os("LKST_BLESS").is_some_and(|value| value == "1") {
        fs::write(root().join(path), should)?;
        return Ok(());
    }
    ensure!(text == should, "{path} is stale: run this test with LKST_BLESS=1");
    Ok(())
}

/// One of each request, as `docs/control.md` shows them.
fn requests() -> Vec<Request> {
    let (pack, set) = ("io".to_owned(), "detail".to_owned());
    let for_ns = Some(10_000_000_000);
    let all = vec![
        Request::Status,
        Request::Reload,
        Request::Save {
            pack: Some(pack.clone()),
        },
        Request::Switch {
            pack: pack.clone(),
            buffer: "incident".to_owned(),
            for_ns,
        },
        Request::Enable {
            pack: pack.clone(),
            set: set.clone(),
            for_ns,
        },
        Request::Disable {
            pack: pack.clone(),
            set,
        },
        Request::Reset { pack },
    ];
    // A new request does not compile here: it belongs above, and into the document.
    for request in &all {
        match request {
            Request::Status
            | Request::Reload
            | Request::Save { .. }
            | Request::Switch { .. }
            | Request::Enable { .. }
            | Request::Disable { .. }
            | Request::Reset { .. } => {}
        }
    }
    all
}

#[test]
fn every_request_is_documented() -> Result<()> {
    let text = read("docs/control.md")?;
    for request in requests() {
        let value = serde_json::to_value(&request)?;
        let named = match &value {
            Value::String(name) => Some((name, None)),
            Value::Object(object) => object.iter().next().map(|(name, args)| (name, Some(args))),
            _ => None,
        };
        let (name, arguments) = named.with_context(|| format!("{value}"))?;
        let method = if request == Request::Status { "GET" } else { "POST" };
        let (_, section) = text
            .split_once(&format!("\n### `{method} /v1/{name}`\n"))
            .with_context(|| format!("`{name}` has no heading"))?;
        let section = section.split("\n#").next().unwrap_or_default();
        let curl = section
            .lines()
            .find(|line| line.starts_with("curl "))
            .with_context(|| format!("`{name}` has no example"))?;
        ensure!(curl.ends_with(&format!("http://lkst/v1/{name}")), "{curl}");
        if let Some(arguments) = arguments {
            let (_, rest) = curl.split_once("-d '").with_context(|| curl.to_owned())?;
            let (body, _) = rest.split_once('\'').with_context(|| curl.to_owned())?;
            let shown: Value = serde_json::from_str(body)?;
            ensure!(shown == *arguments, "{curl}: not {arguments}");
        }
    }
    let headings = text.matches("\n### `").count();
    ensure!(headings == requests().len(), "{headings} headings of requests");
    Ok(())
}

/// Every key of a JSON value.
fn keys(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                found.insert(key.clone());
                keys(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

#[test]
fn every_key_of_the_status_is_documented() -> Result<()> {
    let text = read("docs/control.md")?;
    let (_, section) = text.split_once("\n## Status\n").context("no section")?;
    let (section, _) = section.split_once("\n## ").context("no end of the section")?;
    let mut found = BTreeSet::new();
    keys(&serde_json::to_value(full_status())?, &mut found);
    ensure!(found.len() > 40, "{found:?}");
    for key in found {
        ensure!(section.contains(&format!("`{key}`")), "`{key}` is missing");
    }
    for phase in [
        PackPhase::Active,
        PackPhase::Observe,
        PackPhase::Stopped,
        PackPhase::OverBudget,
        PackPhase::Off,
    ] {
        let name = serde_json::to_value(phase)?;
        let name = name.as_str().context("a phase is a word")?;
        ensure!(section.contains(&format!("`{name}`")), "`{name}` is missing");
    }
    Ok(())
}
