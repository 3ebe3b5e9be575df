//! `dunlin-agent hook`: one request to a hook's receiver on this board. The executor starts it as a job, under a guard and in
//! the sandbox; it is told what to ask on descriptor 5, the token by its environment. Its exit code says how that went, the
//! report what the receiver answered.

use crate::clock;
use crate::exec::{HOOK_EXIT, HOOK_TOKEN};
use dunlin_wire::outcome::HookEnd;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::FromRawFd;
use std::process::ExitCode;
use std::time::Duration;

/// Largest answer that is read, in bytes.
const ANSWER_MAX: u64 = 256 * 1024;
/// Time between two tries, in milliseconds, where the receiver does not say.
const AGAIN_MS: u64 = 1_000;
/// It ends so long before its guard would kill it, in milliseconds: then it can say why.
const EARLY_MS: u64 = 200;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Order {
    host: String,
    port: u16,
    path: String,
    body: String,
    wake: bool,
    key: String,
    timeout_ms: u64,
}

/// An answer as far as it matters.
struct Answer {
    status: u16,
    retry_after_s: Option<u64>,
    body: Vec<u8>,
}

/// What a try came to.
enum Try {
    Done(Result<&'static str, HookEnd>, Value),
    /// Worth another, after so many milliseconds.
    Again(u64, Value),
}

pub(super) fn run() -> ExitCode {
    // SAFETY: the executor left the order there, and nothing else in this process uses that number.
    let mut order = unsafe { File::from_raw_fd(5) };
    let mut text = String::new();
    let read = order.read_to_string(&mut text).map(|_| serde_json::from_str::<Order>(&text));
    let (Ok(Ok(order)), Ok(token)) = (read, std::env::var(HOOK_TOKEN)) else {
        eprintln!("dunlin-agent hook: only the executor starts it");
        return ExitCode::from(super::EX_USAGE);
    };
    let (done, answer) = call(&order, &token);
    let word = match &done {
        Ok(word) => *word,
        Err(how) => how.as_str(),
    };
    let result = json!({"status": word, "answer": answer});
    println!("{result}");
    if let Some(path) = std::env::var_os("DUNLIN_REPORT") {
        let line = format!("{}\n", json!({"result": result}));
        let written = File::options().append(true).open(path).and_then(|mut f| f.write_all(line.as_bytes()));
        if let Err(error) = written {
            eprintln!("dunlin-agent hook: the report was not written: {error}");
        }
    }
    match done {
        Ok(_) => ExitCode::SUCCESS,
        Err(how) => {
            ExitCode::from(HOOK_EXIT + HookEnd::ALL.iter().position(|h| *h == how).unwrap_or(0) as u8)
        }
    }
}

/// Tries until there is an answer that counts, or the time is over.
fn call(order: &Order, token: &str) -> (Result<&'static str, HookEnd>, Value) {
    let until = clock::boot_ms() + order.timeout_ms.saturating_sub(EARLY_MS);
    loop {
        let left = until.saturating_sub(clock::boot_ms());
        if left == 0 {
            return (Err(HookEnd::Unavailable), Value::Null);
        }
        let (after_ms, why) = match ask(order, token, left) {
            Ok(answer) => match judge(order, &answer) {
                Try::Done(done, shown) => return (done, shown),
                Try::Again(after_ms, shown) => (after_ms, shown),
            },
            // It took the request and did not answer in time: what it does now, nobody knows.
            Err((true, error))
                if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) =>
            {
                return (Err(HookEnd::TimeoutUnknown), error.to_string().into());
            }
            Err((_, error)) => (AGAIN_MS, error.to_string().into()),
        };
        eprintln!("dunlin-agent hook: {why}; again in {after_ms} ms");
        if clock::boot_ms() + after_ms >= until {
            return (Err(HookEnd::Unavailable), why);
        }
        std::thread::sleep(Duration::from_millis(after_ms));
    }
}

/// One request; with an error, whether the request had been sent.
fn ask(order: &Order, token: &str, left_ms: u64) -> Result<Answer, (bool, io::Error)> {
    let unsent = |e| (false, e);
    let wait = Some(Duration::from_millis(left_ms.max(1)));
    let host: IpAddr = order.host.parse().map_err(|_| unsent(io::ErrorKind::InvalidInput.into()))?;
    let addr = SocketAddr::new(host, order.port);
    let mut stream =
        TcpStream::connect_timeout(&addr, Duration::from_millis(left_ms.max(1))).map_err(unsent)?;
    stream.set_read_timeout(wait).and_then(|()| stream.set_write_timeout(wait)).map_err(unsent)?;
    let key = if order.wake { String::new() } else { format!("Idempotency-Key: {}\r\n", order.key) };
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {addr}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n{key}Connection: close\r\n\r\n",
        order.path,
        order.body.len()
    );
    stream
        .write_all(head.as_bytes())
        .and_then(|()| stream.write_all(order.body.as_bytes()))
        .map_err(unsent)?;
    let mut bytes = Vec::new();
    // A receiver that drips would outlast its read timeout; the guard ends that.
    stream.take(ANSWER_MAX).read_to_end(&mut bytes).map_err(|e| (true, e))?;
    parse(&bytes).ok_or_else(|| (true, io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP")))
}

/// Status, `Retry-After` and body of an answer that ends with its connection.
fn parse(bytes: &[u8]) -> Option<Answer> {
    let at = bytes.windows(4).position(|w| w == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&bytes[..at]).ok()?;
    let body = &bytes[at + 4..];
    let mut lines = head.split("\r\n");
    let first = lines.next()?;
    let status = first.strip_prefix("HTTP/1.")?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, &str)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim()))
        .collect();
    let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| *value);
    let chunked = header("transfer-encoding").is_some_and(|value| value.eq_ignore_ascii_case("chunked"));
    let length = header("content-length").and_then(|n| n.parse::<usize>().ok());
    let body = match (chunked, length) {
        (true, _) => unchunk(body)?,
        // A connection that broke off is no answer.
        (false, Some(length)) => body.get(..length)?.to_vec(),
        (false, None) => body.to_vec(),
    };
    Some(Answer { status, retry_after_s: header("retry-after").and_then(|n| n.parse().ok()), body })
}

fn unchunk(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let at = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..at]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = &rest[at + 2..];
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size..)?.strip_prefix(b"\r\n")?;
    }
}

/// What an answer means.
fn judge(order: &Order, answer: &Answer) -> Try {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let mut shown = json!({"httpStatus": answer.status});
    for name in ["runId", "mode", "eventOutcome", "completion"] {
        if !body[name].is_null() && body[name].to_string().len() <= 2048 {
            shown[name] = body[name].clone();
        }
    }
    match answer.status {
        200 if body["ok"] == true => {
            let done = match body["completion"]["status"].as_str() {
                _ if order.wake => Ok("accepted"),
                Some("ok") => Ok("ok"),
                Some("skipped") => Err(HookEnd::Skipped),
                Some(_) => Err(HookEnd::Error),
                None => Ok("accepted"),
            };
            Try::Done(done, shown)
        }
        401 | 403 => Try::Done(Err(HookEnd::Unauthorized), shown),
        408 | 429 | 502 | 503 => {
            let after_ms = answer.retry_after_s.map_or(AGAIN_MS, |s| s.saturating_mul(1000)).max(AGAIN_MS);
            Try::Again(after_ms, shown)
        }
        // Also where it would have us go elsewhere: nothing is followed.
        _ => Try::Done(Err(HookEnd::Rejected), shown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An answer, whether to a wake, and what it comes to.
    fn check(status: &str, body: &str, wake: bool, want: &str) {
        let order = Order {
            host: "127.0.0.1".into(),
            port: 1,
            path: "/".into(),
            body: String::new(),
            wake,
            key: "t".into(),
            timeout_ms: 1,
        };
        let text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let found = match parse(text.as_bytes()).map(|answer| judge(&order, &answer)) {
            None => "none".to_owned(),
            Some(Try::Done(Ok(word), _)) => word.to_owned(),
            Some(Try::Done(Err(how), _)) => how.to_string(),
            Some(Try::Again(ms, _)) => format!("again {ms}"),
        };
        assert_eq!(found, want, "{status} {body}");
    }

    #[test]
    fn answers_of_a_gateway() {
        check("200 OK", r#"{"ok":true,"runId":"r"}"#, false, "accepted");
        check("200 OK", r#"{"ok":true,"completion":{"status":"ok"}}"#, false, "ok");
        check("200 OK", r#"{"ok":true,"completion":{"status":"skipped"}}"#, false, "skipped");
        check("200 OK", r#"{"ok":true,"completion":{"status":"error"}}"#, false, "error");
        check("200 OK", r#"{"ok":true,"mode":"now","eventOutcome":"queued"}"#, true, "accepted");
        check("200 OK", "{}", true, "rejected");
        check("401 Unauthorized", "no", false, "unauthorized");
        check("429 Too Many\r\nRetry-After: 60", "", false, "again 60000");
        check("503 x\r\nRetry-After: 99999999999999999999", "", false, "again 1000");
        check("302 Found\r\nLocation: http://x/", "", false, "rejected");
        for status in ["400 x", "404 x", "405 x", "413 x", "500 x"] {
            check(status, "", false, "rejected");
        }
    }

    #[test]
    fn answers_in_pieces() {
        assert_eq!(unchunk(b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n").unwrap(), b"abcde");
        for bad in [&b"3\r\nab"[..], b"zz\r\n", b"", b"ffffffffffffffff\r\na\r\n", b"3\r\nabcX"] {
            assert!(unchunk(bad).is_none(), "{bad:?}");
        }
        assert!(parse(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc").is_none(), "broken off");
        assert!(parse(b"SSH-2.0-x\r\n\r\n").is_none());
    }
}
