//! A case of the corpus: a file, and the comparison with what is expected of it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// A file of the corpus.
pub(crate) struct Case {
    /// Its name without the ending.
    pub(crate) name: String,
    /// What it holds; not every case is text.
    pub(crate) bytes: Vec<u8>,
    path: PathBuf,
}

/// The files with an ending in one folder of the corpus, by name.
pub(crate) fn cases(root: &Path, folder: &str, ending: &str) -> Result<Vec<Case>> {
    let folder = root.join(folder);
    let mut cases = Vec::new();
    for entry in std::fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == ending) {
            let name = path
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let bytes = std::fs::read(&path).with_context(|| path.display().to_string())?;
            cases.push(Case { name, bytes, path });
        }
    }
    cases.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(cases)
}

impl Case {
    /// The name of the file, as diagnostics show it.
    pub(crate) fn file_name(&self) -> String {
        format!("{}.lkst", self.name)
    }

    /// Compares what came of the case with the file beside it, or writes that file where `LKST_BLESS` is set.
    pub(crate) fn compare(&self, ending: &str, is: &str) -> Result<()> {
        let path = self.path.with_extension(ending);
        if std::env::var_os("LKST_BLESS").is_some_and(|value| value == "1") {
            return std::fs::write(&path, is).with_context(|| path.display().to_string());
        }
        let should = std::fs::read_to_string(&path)
            .with_context(|| format!("{}: run with LKST_BLESS=1 to write it", path.display()))?;
        if is == should {
            return Ok(());
        }
        let line = is.lines().zip(should.lines()).take_while(|(a, b)| a == b).count() + 1;
        bail!(
            "{} differs from line {line} on; it is:\n{is}\nand should be:\n{should}",
            path.display()
        );
    }
}

/// A line `# repeat N: TEXT` of a case stands for N times TEXT, in which `{n}` is the number of the time, from 1: so the
/// cases of limits can be read.
pub(crate) fn expand(text: &str) -> Result<String> {
    let mut expanded = String::with_capacity(text.len());
    for line in text.split_inclusive('\n') {
        let repeat = line
            .strip_prefix("# repeat ")
            .and_then(|rest| rest.split_once(": "));
        let Some((times, what)) = repeat else {
            expanded.push_str(line);
            continue;
        };
        let times: usize = times.parse().context("how often")?;
        for n in 1..=times {
            expanded.push_str(&what.trim_end_matches('\n').replace("{n}", &n.to_string()));
        }
        expanded.push('\n');
    }
    Ok(expanded)
}
