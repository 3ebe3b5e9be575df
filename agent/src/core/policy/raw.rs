//! The policy file as written. Fields that are not known are refused; what they mean is checked in [`super::compile`].

use super::actuation::RawActuator;
use super::hooks::{RawHook, RawOrchestrator};
use serde::Deserialize;
use std::collections::BTreeMap;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPolicy {
    pub schema: Option<u32>,
    pub default: Option<String>,
    #[serde(default)]
    pub ceilings: RawCeilings,
    #[serde(default)]
    pub signing: RawSigning,
    #[serde(default)]
    pub shell: RawShell,
    #[serde(default)]
    pub slots: RawSlots,
    #[serde(default)]
    pub root: BTreeMap<String, RawRoot>,
    #[serde(default)]
    pub rule: Vec<RawRule>,
    pub orchestrator: Option<RawOrchestrator>,
    #[serde(default)]
    pub hook: Vec<RawHook>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCeilings {
    pub timeout: Option<String>,
    pub grace: Option<String>,
    pub output: Option<String>,
    pub memory: Option<String>,
    pub pids: Option<u32>,
    pub jobs: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSigning {
    pub require: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawShell {
    #[serde(default)]
    pub enabled: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawSlots {
    #[serde(default)]
    pub users: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRoot {
    pub path: String,
    #[serde(default)]
    pub symlinks: bool,
    #[serde(default)]
    pub cross_mount: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRule {
    pub id: String,
    pub program: Option<String>,
    pub interpreter: Option<String>,
    pub script: Option<String>,
    #[serde(default)]
    pub sha256: Vec<String>,
    #[serde(default)]
    pub args: Vec<RawMatcher>,
    pub rest: Option<RawRest>,
    #[serde(default)]
    pub cwd: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, RawMatcher>,
    #[serde(default)]
    pub secret_env: BTreeMap<String, String>,
    pub user: Option<String>,
    #[serde(default)]
    pub groups: Vec<String>,
    pub network: Option<bool>,
    #[serde(default)]
    pub write: Vec<String>,
    #[serde(default)]
    pub devices: Vec<String>,
    #[serde(default)]
    pub limits: RawLimits,
    pub timeout: Option<String>,
    pub timeout_max: Option<String>,
    pub output: Option<String>,
    pub on_output_limit: Option<String>,
    pub sandbox: Option<String>,
    #[serde(default)]
    pub launcher: bool,
    #[serde(default)]
    pub shell: bool,
    #[serde(default)]
    pub detach: bool,
    #[serde(default)]
    pub unicode: bool,
    pub actuator: Option<RawActuator>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub memory: Option<String>,
    pub pids: Option<u32>,
    pub cpu: Option<String>,
    pub file_size: Option<String>,
    pub nofile: Option<u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRest {
    pub each: RawMatcher,
    #[serde(default)]
    pub min: usize,
    pub max: usize,
}

/// A literal, or a table with exactly one of `re`, `int`, `one_of`, `path`.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawMatcher {
    Literal(String),
    Table(RawTable),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTable {
    pub re: Option<String>,
    pub int: Option<[i64; 2]>,
    pub one_of: Option<Vec<String>>,
    pub path: Option<RawPath>,
    #[serde(default)]
    pub dash: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPath {
    pub root: String,
    pub kind: String,
}
