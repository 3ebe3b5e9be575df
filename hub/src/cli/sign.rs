//! Signing a job, for the hub to carry or for a file.

use super::args::{JobArgs, duration};
use super::client::Failure;
use super::key::{self, usage};
use super::work;
use crate::clock;
use clap::{Args, Subcommand};
use dunlin_wire::bundle::BundleResult;
use dunlin_wire::envelope::{Audience, Envelope, Payload, VERSION, Work};
use dunlin_wire::job::{Delivery, Job};
use dunlin_wire::seal::{Context, to_text};
use dunlin_wire::{Key, TaskId, limits};
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::json;
use std::io::Write;
use std::path::PathBuf;

/// Clocks of boards may be behind ours by this much, in milliseconds.
const CLOCKS_MS: u64 = 300_000;
/// How long a job is good for when nobody says it, in milliseconds.
const EXPIRES_MS: u64 = 3_600_000;
/// Attempts of a job that says nothing.
const ATTEMPTS: u32 = 3;

#[derive(Args)]
pub(super) struct SignArgs {
    /// Sign the job with this operator's key, which the hub never sees.
    #[arg(long, value_name = "FILE")]
    sign: Option<PathBuf>,
    /// The key's certificate; without it boards must have it from a key set, and --fleet is needed.
    #[arg(long, value_name = "FILE", requires = "sign")]
    cert: Option<PathBuf>,
    /// Signed for these nodes, by name.
    #[arg(long, value_delimiter = ',', requires = "sign", conflicts_with = "tags")]
    to: Vec<String>,
    /// Signed for nodes whose own configuration has all of these tags.
    #[arg(long, value_delimiter = ',', requires = "sign")]
    tags: Vec<String>,
    /// How long the signed job is good for, like 1h, the default.
    #[arg(long, value_parser = duration, requires = "sign")]
    expires: Option<u64>,
    /// It may run under this rule of the board's policy only; may be repeated.
    #[arg(long, requires = "sign")]
    rule: Vec<String>,
    /// It must run as this user: slot, root, or a name.
    #[arg(long, requires = "sign")]
    user: Option<String>,
    /// Why, for whoever reads the board's audit.
    #[arg(long, default_value = "", requires = "sign", hide_default_value = true)]
    reason: String,
    /// The fleet, when there is no certificate to say it.
    #[arg(long, requires = "sign")]
    fleet: Option<String>,
}

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(super) struct BundleArgs {
    #[command(subcommand)]
    pub command: Option<BundleCommand>,
    #[command(flatten)]
    sign: SignArgs,
    #[command(flatten)]
    job: JobArgs,
    /// Where; standard output by default.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(super) enum BundleCommand {
    /// Verify a result and print it.
    Show {
        /// The file that `dunlin-agent run-bundle` wrote.
        file: PathBuf,
        /// The board's public key; another one's result is refused.
        #[arg(long)]
        key: Option<String>,
        /// As JSON, without the output.
        #[arg(long)]
        json: bool,
    },
}

impl SignArgs {
    /// The signed job, when it is to be signed.
    pub(super) fn envelope(
        &self,
        job: &JobArgs,
        work: impl FnOnce() -> Result<Job, Failure>,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let Some(path) = &self.sign else { return Ok(None) };
        let (pair, issuer) = key::load(path)?;
        let cert = self.cert.as_deref().map(key::cert).transpose()?;
        if cert.as_ref().is_some_and(|(_, cert)| cert.key != issuer) {
            return Err(usage("the certificate is of another key than --sign"));
        }
        let fleet = match (&self.fleet, &cert) {
            (Some(text), _) => key::fleet(text)?,
            (None, Some((_, cert))) => cert.fleet,
            (None, None) => return Err(usage("--sign needs --cert, or --fleet when boards have a key set")),
        };
        let mut random = [0; 24];
        SystemRandom::new().fill(&mut random).map_err(|_| usage("no random numbers from the system"))?;
        let mut nonce = [0; 16];
        nonce.copy_from_slice(&random[..16]);
        let made = || format!("t-{}", data_encoding::HEXLOWER.encode(&random[16..]));
        let task = job.task_id.clone().unwrap_or_else(made);
        let now_ms = clock::now().wall;
        let payload = Payload {
            version: VERSION,
            work: Work::try_from(work()?).map_err(|e| usage(e.to_string()))?,
            rules: self.rule.clone(),
            task: task.parse::<TaskId>().map_err(|e| usage(format!("--task-id: {e}")))?,
            fleet,
            audience: self.audience()?,
            timeout_ms: job.timeout,
            user: self.user.clone(),
            delivery: match job.delivery.as_deref() {
                Some("atMostOnce") => Delivery::AtMostOnce,
                _ => Delivery::AtLeastOnce,
            },
            attempts_max: job.max_attempts.unwrap_or(ATTEMPTS),
            not_before_ms: now_ms.saturating_sub(CLOCKS_MS),
            expires_ms: now_ms + self.expires.unwrap_or(EXPIRES_MS),
            nonce,
            issuer,
            reason: self.reason.clone(),
        };
        let envelope = Envelope::sign(&payload, cert.map(|(sealed, _)| sealed), &pair);
        envelope.map(Some).map_err(|e| usage(format!("this cannot be signed: {e}")))
    }

    fn audience(&self) -> Result<Audience, Failure> {
        if !self.to.is_empty() {
            let node = |text: &String| text.parse().map_err(|e| usage(format!("--to: {e}")));
            return Ok(Audience::Nodes(self.to.iter().map(node).collect::<Result<_, _>>()?));
        }
        if self.tags.is_empty() {
            return Err(usage("say whom it is signed for: --to NODE, or --tags a,b"));
        }
        let tag = |text: &String| text.parse().map_err(|e| usage(format!("--tags: {e}")));
        Ok(Audience::Tags(self.tags.iter().map(tag).collect::<Result<_, _>>()?))
    }
}

/// `bundle`, and `bundle show`.
pub(super) fn bundle(args: BundleArgs) -> Result<u8, Failure> {
    match args.command {
        Some(BundleCommand::Show { file, key, json }) => show(&file, key.as_deref(), json),
        None => {
            let work = || work::of("shell", None, &args.job);
            let bytes =
                args.sign.envelope(&args.job, work)?.ok_or_else(|| usage("a bundle needs --sign KEY"))?;
            key::write(args.out.as_deref(), &to_text(Context::Job, &bytes), 0o644)?;
            Ok(0)
        }
    }
}

fn show(file: &std::path::Path, key: Option<&str>, as_json: bool) -> Result<u8, Failure> {
    let text = key::read(file, 2 * limits::BUNDLE_RESULT_MAX as u64)?;
    let name = file.display();
    let result = BundleResult::parse(&text).ok_or_else(|| {
        usage(format!("{name}: not a result, or it was altered: its signature does not match"))
    })?;
    if key.is_some_and(|text| Key::from_hex(text) != Some(result.key)) {
        return Err(usage(format!("{name}: signed by {}, not by the key that was given", result.key)));
    }
    if as_json {
        let shown = json!({
            "node": result.node.as_str(), "publicKey": result.key.to_string(), "fleet": result.fleet.to_string(),
            "taskId": result.task.as_str(), "endedAt": result.at_ms, "rule": result.report.rule,
            "job": data_encoding::HEXLOWER.encode(&result.job), "outcome": result.report.outcome.to_string(),
            "exitCode": result.report.outcome.exit_code(),
        });
        println!("{shown:#}");
    } else {
        let outcome = &result.report.outcome;
        eprintln!("{}: {outcome} on {}, signed by {}", result.task, result.node, result.key);
        let _ = std::io::stdout().write_all(&result.stdout);
        let _ = std::io::stderr().write_all(&result.stderr);
    }
    Ok(result.report.outcome.exit_code())
}
