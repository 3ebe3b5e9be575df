//! Records for people: one HTML file that needs nothing else, and what changed between two records.

mod compare;
mod html;
mod svg;

use crate::record::Record;
use anyhow::{Context, Result};
use std::path::PathBuf;

/// How it is called.
pub const USAGE: &str = "dunlin-bench report FILE... [--out F]      records of --json as one HTML file (report.html)
         --compare A B                    what changed from A to B beyond noise; exit code 3 when something did";

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Options {
    /// One HTML file of all these.
    Html {
        /// The records.
        files: Vec<PathBuf>,
        /// The page.
        out: PathBuf,
    },
    /// The second beside the first.
    Compare([PathBuf; 2]),
}

impl Options {
    /// Reads the arguments after `report`.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn parse(args: &[&str]) -> Result<Self, String> {
        if let ["--compare", a, b] = args {
            return Ok(Self::Compare([a.into(), b.into()]));
        }
        let (mut files, mut out) = (Vec::new(), PathBuf::from("report.html"));
        let mut args = args.iter();
        while let Some(&arg) = args.next() {
            match arg {
                "--out" => out = args.next().ok_or("--out lacks its value")?.into(),
                "--compare" => return Err("--compare takes two files and nothing else".into()),
                _ if arg.starts_with("--") => return Err(format!("`{arg}` is not known")),
                file => files.push(file.into()),
            }
        }
        if files.is_empty() {
            return Err("a FILE that --json wrote is missing".into());
        }
        Ok(Self::Html { files, out })
    }
}

/// Writes the page, or prints what changed. Whether something did.
///
/// # Errors
/// A file that is no record, or cannot be written.
pub fn run(options: &Options) -> Result<bool> {
    match options {
        Options::Html { files, out } => {
            let records: Vec<Record> = files.iter().map(|file| Record::load(file)).collect::<Result<_>>()?;
            std::fs::write(out, html::page(&records)).with_context(|| out.display().to_string())?;
            println!("{}", out.display());
            Ok(false)
        }
        Options::Compare([a, b]) => {
            let (text, changed) = compare::compare(&Record::load(a)?, &Record::load(b)?);
            print!("{text}");
            Ok(changed)
        }
    }
}

/// A value with about four digits; microseconds as milliseconds.
pub(super) fn value(value: f64, unit: &str) -> String {
    let value = if unit == "us" { value / 1000.0 } else { value };
    let digits = match value.abs() {
        v if v == v.trunc() && unit != "us" => 0,
        v if v < 1.0 => 3,
        v if v < 100.0 => 2,
        v if v < 10_000.0 => 1,
        _ => 0,
    };
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_short() {
        for (v, unit, want) in
            [(0.0, "jobs", "0"), (0.1234, "", "0.123"), (1500.0, "us", "1.50"), (12_345_678.0, "us", "12346")]
        {
            assert_eq!(value(v, unit), want);
        }
    }

    #[test]
    fn arguments_are_read_or_named() {
        let parse = |text: &str| Options::parse(&text.split_whitespace().collect::<Vec<_>>());
        let want = Options::Html { files: vec!["a.json".into(), "b.json".into()], out: "c.html".into() };
        assert_eq!(parse("a.json --out c.html b.json"), Ok(want));
        assert_eq!(parse("--compare a b"), Ok(Options::Compare(["a".into(), "b".into()])));
        for (text, want) in [
            ("", "a FILE that --json wrote is missing"),
            ("--compare a", "--compare takes two files"),
            ("a --out", "--out lacks its value"),
            ("a --what", "`--what` is not known"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(want), "{text}: {error}");
        }
    }
}
