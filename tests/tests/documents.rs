//! The documents against the code that they describe.
//!
//! `docs/diagnostics.md` lists every code, in the order of `codes.rs` and in its words; `LKST_BLESS=1` writes the list
//! anew. What the README tells people to type is what `.ci/run` types.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};

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
