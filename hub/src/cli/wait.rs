//! `submit --wait`: the job's output as it comes, and its exit code.

use super::client::{Client, Failure};
use serde_json::Value;
use std::io::Write;
use std::sync::mpsc;
use std::time::Duration;

/// How often output is asked for while a job runs.
const TICK: Duration = Duration::from_millis(200);

/// Follows a task to its end; the task then. With `copy`, its output goes to ours.
pub(super) fn until_ended(client: &Client, id: &str, since: u64, copy: bool) -> Result<Value, Failure> {
    let (wake, woken) = mpsc::channel();
    let (listener, ours) = (client.clone(), id.to_owned());
    // Not joined: it may wait for an event that was there before it listened.
    std::thread::spawn(move || {
        // When the stream breaks, the tick alone goes on.
        let _ =
            listener.events(since, |event| event["taskId"].as_str() != Some(&ours) || wake.send(()).is_ok());
    });
    let mut follower = Follower { client, id, attempt: 0, offsets: [0; 2] };
    loop {
        let task = client.get(&format!("/v1/tasks/{id}"))?;
        if copy {
            follower.copy(&task)?;
        }
        if matches!(task["status"].as_str(), Some("done" | "failed" | "cancelled")) {
            return Ok(task);
        }
        if let Err(mpsc::RecvTimeoutError::Disconnected) = woken.recv_timeout(TICK) {
            std::thread::sleep(TICK);
        }
    }
}

struct Follower<'a> {
    client: &'a Client,
    id: &'a str,
    attempt: u64,
    offsets: [u64; 2],
}

impl Follower<'_> {
    fn copy(&mut self, task: &Value) -> Result<(), Failure> {
        let attempt = task["attempt"].as_u64().unwrap_or(0);
        if attempt != self.attempt {
            if self.attempt > 0 {
                self.copy_attempt()?;
            }
            self.attempt = attempt;
            self.offsets = [0; 2];
        }
        if attempt > 0 { self.copy_attempt() } else { Ok(()) }
    }

    fn copy_attempt(&mut self) -> Result<(), Failure> {
        for (at, stream) in ["stdout", "stderr"].into_iter().enumerate() {
            loop {
                let piece = self.client.output(self.id, self.attempt, stream, self.offsets[at])?;
                // Our reader may have gone; the job's end is still waited for.
                let _ = match at {
                    0 => std::io::stdout().write_all(&piece.bytes).and_then(|()| std::io::stdout().flush()),
                    _ => std::io::stderr().write_all(&piece.bytes),
                };
                self.offsets[at] = piece.next;
                if piece.bytes.is_empty() || piece.next >= piece.held {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// `task logs -f`: copies what the job writes until its attempt ends.
pub(super) fn follow(client: &Client, path: &str, json: bool) -> Result<(), Failure> {
    let mut ended = false;
    client.stream(path, |piece| {
        ended = piece.get("end").is_some();
        let wrote = if json {
            writeln!(std::io::stdout(), "{piece}")
        } else if let Some(missing) = piece["gap"].as_u64() {
            eprintln!("dunlin: {missing} bytes at {} were not seen live", piece["offset"]);
            Ok(())
        } else {
            let data = piece["data"].as_str().unwrap_or_default().as_bytes();
            let bytes = data_encoding::BASE64.decode(data).unwrap_or_default();
            std::io::stdout().write_all(&bytes).and_then(|()| std::io::stdout().flush())
        };
        // A reader of ours that is gone has seen enough.
        ended |= wrote.is_err();
        !ended
    })?;
    match ended {
        true => Ok(()),
        false => Err(Failure::Unreachable { hub: "the API".into(), why: "the stream broke off".into() }),
    }
}

/// The exit code for how a task ended; says on stderr what the code alone does not.
pub(super) fn exit_code(task: &Value) -> u8 {
    let outcome = task["attempts"].as_array().and_then(|a| a.last()).map(|a| &a["outcome"]);
    let code = outcome.and_then(|o| o["exitCode"].as_u64());
    let word = outcome.and_then(|o| o["code"].as_str()).unwrap_or("");
    let detail = outcome.and_then(|o| o["detail"].as_str()).unwrap_or("");
    match task["status"].as_str() {
        Some("done") => 0,
        Some("cancelled") => {
            eprintln!("dunlin: cancelled");
            130
        }
        _ => {
            let reason = task["deadReason"].as_str().unwrap_or("failed");
            eprintln!("dunlin: given up ({reason}); the last attempt ended {word} {detail}");
            code.and_then(|c| u8::try_from(c).ok()).unwrap_or(75)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn codes_are_the_jobs_own() {
        let failed = |outcome: Value| json!({"status": "failed", "deadReason": "x", "attempts": [{"outcome": outcome}]});
        for (task, code) in [
            (json!({"status": "done"}), 0),
            (json!({"status": "cancelled"}), 130),
            (failed(json!({"code": "exit", "exitCode": 7})), 7),
            (failed(json!({"code": "timed_out", "exitCode": 124})), 124),
            (json!({"status": "failed", "deadReason": "ttl_expired", "attempts": []}), 75),
        ] {
            assert_eq!(exit_code(&task), code, "{task}");
        }
    }
}
