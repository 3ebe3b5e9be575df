//! `dunlin policy push`: narrows what boards allow. Nothing can widen it but the board's own file.

use super::args::duration;
use super::client::{Client, Failure};
use clap::Subcommand;
use serde::Deserialize;
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(Subcommand)]
pub(super) enum PolicyCommand {
    /// Narrow the policy of one board, or of all that have no overlay of their own.
    Push {
        /// TOML with any of `rules` (ids, `hook:NAME`, `orchestrator`), `timeout`, `output`, `jobs`; an empty file takes back.
        file: PathBuf,
        /// Only this board.
        #[arg(long)]
        node: Option<String>,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    rules: Option<Vec<String>>,
    timeout: Option<String>,
    output: Option<String>,
    jobs: Option<u32>,
}

pub(super) fn push(client: &Client, path: &Path, node: Option<&str>) -> Result<(), Failure> {
    let wrong = |e: String| Failure::Usage(format!("{}: {e}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
    let file: File = toml::from_str(&text).map_err(|e| wrong(e.to_string()))?;
    let timeout =
        file.timeout.map(|text| duration(&text)).transpose().map_err(|e| wrong(format!("timeout: {e}")))?;
    let bytes = |text: String| {
        dunlin_wire::units::bytes(&text).ok_or_else(|| wrong("output: write it like 64KiB or 1MiB".into()))
    };
    let output = file.output.map(bytes).transpose()?;
    let body =
        json!({"node": node, "rules": file.rules, "timeoutMs": timeout, "output": output, "jobs": file.jobs});
    let answer = client.post("/v1/policy", &body)?;
    println!(
        "version {} sent to {} boards; others get it when they connect",
        answer["version"], answer["sent"]
    );
    Ok(())
}
