//! The API over TLS: who has the certificate is let in, and every other way is said in one line.

use super::FAST;
use dunlin_tests::{Fleet, until};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

/// Writes a self-signed certificate for this machine and its key, over what is there.
fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    (cert, key)
}

/// A fleet whose API speaks TLS. Its harness, which speaks plain HTTP, cannot call it: the tests use `dunlin`.
fn fleet() -> (tempfile::TempDir, Fleet) {
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(dir.path());
    let api = format!("[api]\ntls_cert = {cert:?}\ntls_key = {key:?}\n");
    let binary = Path::new(env!("CARGO_BIN_EXE_demo"));
    let fleet = Fleet::new(dir.path(), binary, &FAST.replace("[api]\n", &api)).unwrap();
    (dir, fleet)
}

/// Runs `dunlin` against a URL with a certificate to trust.
fn dunlin(fleet: &Fleet, hub: &str, ca: Option<&Path>, args: &[&str]) -> Output {
    let mut command = fleet.command("dunlin");
    command.args(["--hub", hub]).args(ca.map(|path| format!("--ca={}", path.display()))).args(args);
    command.output().unwrap()
}

/// The exit code and stderr of one that must fail.
fn fails(out: &Output) -> (i32, String) {
    (out.status.code().unwrap(), String::from_utf8_lossy(&out.stderr).into_owned())
}

/// The hub's URL with TLS, under the other of its names.
fn url(fleet: &Fleet) -> String {
    fleet.url().replace("http://127.0.0.1", "https://localhost")
}

fn answers(fleet: &Fleet, ca: &Path) {
    until("the hub answers over TLS", || {
        dunlin(fleet, &url(fleet), Some(ca), &["tasks"]).status.success().then_some(())
    });
}

#[test]
fn a_task_goes_over_tls_to_whoever_trusts_the_certificate() {
    let (dir, fleet) = fleet();
    let ca = dir.path().join("cert.pem");
    let _hub = fleet.start_hub_with(&[]).unwrap();
    answers(&fleet, &ca);
    assert!(fleet.logged("hub").contains("posture=\"tls\""), "{}", fleet.logged("hub"));

    let with_slash = format!("{}/", fleet.url().replace("http://", "https://"));
    let submit = ["submit", "--task-id", "over-tls", "--node", "nobody", "--", "/usr/bin/uname"];
    let out = dunlin(&fleet, &with_slash, Some(&ca), &submit);
    assert!(out.status.success(), "{out:?}");
    let listed = dunlin(&fleet, &url(&fleet), Some(&ca), &["tasks", "--json"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("over-tls"), "{listed:?}");

    let invited = dunlin(&fleet, &url(&fleet), Some(&ca), &["node", "invite", "a"]);
    let ticket = String::from_utf8(invited.stdout).unwrap();
    let mut join = fleet.command("dunlin-agent");
    join.args(["join", ticket.trim(), "--data"]).arg(fleet.data("a"));
    assert!(join.output().unwrap().status.success());
    let _a = fleet.start_agent("a").unwrap();
    let waited = dunlin(&fleet, &url(&fleet), Some(&ca), &["submit", "--wait", "--", "/usr/bin/uname", "-a"]);
    let wrote = String::from_utf8_lossy(&waited.stdout);
    assert!(waited.status.success() && wrote.starts_with("Linux"), "events and output come too: {waited:?}");

    let (code, said) = fails(&dunlin(&fleet, &url(&fleet), None, &["tasks"]));
    assert!(code == 69 && said.contains("UnknownIssuer") && said.contains("--ca"), "{said}");
    let (code, said) = fails(&dunlin(&fleet, &fleet.url(), None, &["tasks"]));
    assert!(code == 65 && said.contains("this port speaks TLS: use https://"), "{said}");
}

#[test]
fn a_new_certificate_needs_no_restart_and_a_bad_one_changes_nothing() {
    let (dir, fleet) = fleet();
    let ca = dir.path().join("cert.pem");
    let old = dir.path().join("old.pem");
    std::fs::copy(&ca, &old).unwrap();
    let hub = fleet.start_hub_with(&[]).unwrap();
    answers(&fleet, &ca);

    std::fs::set_permissions(dir.path().join("key.pem"), std::fs::Permissions::from_mode(0o644)).unwrap();
    hub.proc.signal("HUP");
    until("the bad pair is logged", || fleet.logged("hub").contains("others can read it").then_some(()));
    answers(&fleet, &old);

    certificate(dir.path());
    hub.proc.signal("HUP");
    answers(&fleet, &ca);
    let (code, said) = fails(&dunlin(&fleet, &url(&fleet), Some(&old), &["tasks"]));
    assert!(code == 69 && said.contains("TLS: "), "{said}");
}

#[test]
fn a_pair_that_is_not_good_is_refused_before_a_port_opens() {
    let (dir, fleet) = fleet();
    let (config, key) = (dir.path().join("hub.toml"), dir.path().join("key.pem"));
    let run = |what: &str| {
        let out = fleet.command("dunlin-hub").arg(what).arg("--config").arg(&config).output().unwrap();
        let (code, said) = fails(&out);
        (code, format!("{}{said}", String::from_utf8_lossy(&out.stdout)))
    };
    let (code, said) = run("check");
    assert!(code == 0 && said.contains("(tls)"), "{said}");

    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    for what in ["check", "serve"] {
        let (code, said) = run(what);
        assert!(code == 64 && said.contains("api.tls_key") && said.contains("chmod 600"), "{what}: {said}");
    }
    let other = tempfile::tempdir().unwrap();
    std::fs::copy(certificate(other.path()).1, &key).unwrap();
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    for what in ["check", "serve"] {
        let (code, said) = run(what);
        assert!(code == 64 && said.contains("is not the key of the certificate"), "{what}: {said}");
    }
    let (code, said) = run("doctor");
    assert!(code == 1 && said.contains("is not the key of the certificate"), "{said}");
    assert!(!fleet.dir().join("hub").exists(), "nothing was opened");
}

#[test]
fn a_token_is_not_sent_in_the_clear_by_mistake() {
    let (_dir, fleet) = fleet();
    for (hub, code, want) in [
        ("http://hub.example", 64, "--insecure-http"),
        ("http://127.0.0.1.example", 64, "plain HTTP to another machine"),
        ("ftp://h", 64, "INVALID_HUB_URL `ftp://h`: the scheme must be https or http"),
    ] {
        let (got, said) = fails(&dunlin(&fleet, hub, None, &["tasks"]));
        assert!(got == code && said.contains(want), "{hub}: {said}");
    }
    let missing = fails(&dunlin(&fleet, "https://h", Some(Path::new("/nowhere.pem")), &["tasks"]));
    assert!(missing.0 == 64 && missing.1.contains("--ca /nowhere.pem"), "{}", missing.1);
}
