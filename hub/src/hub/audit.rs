//! The audit row of a request. Whatever changes something leaves exactly one, whether it was done or refused; reads leave none.

use crate::event::{Answer, ApiRefusal, AuditRecord, Request};
use dunlin_wire::job::{Actuation, HookDispatch, Job, Wake};
use dunlin_wire::redact;

/// What is known of it before it is answered.
pub(super) struct Row {
    action: &'static str,
    target: String,
    detail: Option<String>,
}

impl Row {
    /// With who asked, when, and what came of it.
    pub(super) fn filled(self, actor: &str, at_ms: u64, answer: &Result<Answer, ApiRefusal>) -> AuditRecord {
        let target = match answer {
            // Its id may be the hub's.
            Ok(Answer::Submitted { task, .. }) => task.id.to_string(),
            _ => self.target,
        };
        AuditRecord {
            at_ms,
            actor: actor.to_owned(),
            action: self.action.to_owned(),
            target,
            result: answer.as_ref().err().map_or("ok".to_owned(), ToString::to_string),
            code: answer.as_ref().err().map_or("ok", ApiRefusal::code).to_owned(),
            detail: self.detail,
        }
    }
}

pub(super) fn row(request: &Request) -> Option<Row> {
    let (action, target) = match request {
        Request::Submit { id, .. } => {
            ("task.submit", id.as_ref().map(ToString::to_string).unwrap_or_default())
        }
        Request::Cancel(id) => ("task.cancel", id.to_string()),
        Request::Retry(id) => ("task.retry", id.to_string()),
        Request::Drain(name, true) => ("node.drain", name.to_string()),
        Request::Drain(name, false) => ("node.undrain", name.to_string()),
        Request::Revoke(name) => ("node.revoke", name.to_string()),
        Request::ReportDown(name, _) => ("node.report_down", name.to_string()),
        Request::Invite { node, .. } => ("node.invite", node.name.to_string()),
        Request::PushKeys(_) => ("keys.push", String::new()),
        Request::PushOverlay { node, .. } => {
            ("policy.push", node.as_ref().map(ToString::to_string).unwrap_or_default())
        }
        Request::Halt => ("fleet.halt", String::new()),
        Request::Resume => ("fleet.resume", String::new()),
        Request::Task(_)
        | Request::Why(_)
        | Request::Nodes
        | Request::Node(_)
        | Request::Probe(_)
        | Request::Recent(_)
        | Request::Metrics => return None,
    };
    let detail = match request {
        Request::Submit { spec, .. } => Some(asked(&spec.job)),
        Request::PushOverlay { overlay, .. } => {
            Some(format!("{overlay:?}").chars().take(DETAIL_CHARS).collect())
        }
        _ => None,
    };
    Some(Row { action, target, detail })
}

/// The work in a line. What a hook is told stays out: nobody knows what is secret in it.
fn asked(job: &Job) -> String {
    match job {
        Job::Shell(shell) => redact::arguments(&shell.argv).join(" "),
        Job::Signed(_) => "signed".into(),
        Job::OrchestratorRun(run) => {
            let steps = run.steps.iter().map(|step| redact::arguments(&step.argv).join(" "));
            steps.collect::<Vec<_>>().join("; ").chars().take(DETAIL_CHARS).collect()
        }
        Job::HookDispatch(HookDispatch { hook, .. }) => format!("hook {hook}"),
        Job::Wake(Wake { hook, .. }) => format!("wake {hook}"),
        Job::Actuation(Actuation { shell, declared }) => {
            format!("{declared}: {}", redact::arguments(&shell.argv).join(" "))
        }
    }
}

/// Longest detail of a run of several steps, in characters.
const DETAIL_CHARS: usize = 2048;
