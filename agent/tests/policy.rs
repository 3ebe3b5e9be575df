//! Every case of the fixture: allowed and denied, each denial with its reason and an allowed neighbour.

#![allow(clippy::unwrap_used, reason = "a test says what went wrong by panicking")]

use dunlin_agent::commands::policy::decide_all;
use dunlin_agent::core::policy::Policy;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// The tree that the cases speak of.
fn tree(root: &Path) {
    for dir in ["bin", "data/logs/sub", "data/releases/42", "data-evil", "outside"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    for file in ["data/logs/app.log", "data/logs/sub/b.log", "outside/secret"] {
        std::fs::write(root.join(file), "x\n").unwrap();
    }
    for (name, mode) in [("health.sh", 0o755), ("ww.sh", 0o757), ("setid", 0o4755)] {
        std::fs::write(root.join("bin").join(name), "#!/bin/sh\n").unwrap();
        set_mode(&root.join("bin").join(name), mode);
    }
    symlink("/etc/passwd", root.join("data/logs/passwd.log")).unwrap();
    symlink(root.join("outside"), root.join("data/logs/out")).unwrap();
    symlink("releases/42", root.join("data/current")).unwrap();
    symlink("/etc", root.join("data/etc")).unwrap();
    let pipe = std::process::Command::new("mkfifo").arg(root.join("data/logs/pipe.log")).status().unwrap();
    assert!(pipe.success());
    set_mode(root, 0o755);
}

#[test]
fn every_case_comes_out_as_it_says() {
    // SAFETY: geteuid cannot fail and touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        // Programs must be root's: whoever is not root cannot make any.
        eprintln!("not root: the cases that need a program of root's own cannot be made");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    tree(&root);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for name in ["policy.toml", "cases.toml"] {
        let text = std::fs::read_to_string(fixtures.join(name)).unwrap();
        std::fs::write(root.join(name), text.replace("@ROOT@", root.to_str().unwrap())).unwrap();
        set_mode(&root.join(name), 0o644);
    }
    let (all, failures) =
        decide_all(&root.join("policy.toml"), root.join("cases.toml").to_str().unwrap()).unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert_eq!(all, 57);
}

/// What a policy is refused with, or nothing.
fn check(rule: &str, want: &str) {
    let text = format!("schema = 1\n[root.data]\npath = \"/srv/data\"\n[[rule]]\nid = \"r\"\n{rule}\n");
    match Policy::parse(&[("p.toml".to_owned(), text)]) {
        Ok(_) => assert_eq!(want, "", "{rule}"),
        Err(error) => {
            let said = error.to_string();
            assert!(
                !want.is_empty() && said.contains(want) && said.starts_with("p.toml, line "),
                "{rule}: {said}"
            );
        }
    }
}

#[test]
fn a_policy_that_cannot_be_meant_is_refused_with_its_line() {
    check("program = \"/usr/bin/df\"", "");
    check("program = \"df\"", "absolute path");
    check("", "needs either `program`");
    check("program = \"/bin/sh\"", "launcher = true");
    check("program = \"/bin/sh\"\nlauncher = true", "");
    check("program = \"/x\"\nprogramm = 1", "line 7: unknown field");
    check("program = \"/x\"\ncwd = [\"nowhere\"]", "not defined");
    check("program = \"/x\"\nargs = [{ path = { root = \"nowhere\", kind = \"file\" } }]", "not defined");
    check("program = \"/x\"\nargs = [{ re = \"(\" }]", "re `(`");
    check("program = \"/x\"\nargs = [{ re = \"a)|(b\" }]", "re `a)|(b`");
    check("program = \"/x\"\nargs = [{ re = \"a\", int = [1, 2] }]", "exactly one of");
    check("program = \"/x\"\nargs = [{ int = [2, 1] }]", "lower bound first");
    check("program = \"/x\"\nenv = { LD_PRELOAD = \"x\" }", "can never be allowed");
    check("program = \"/x\"\ntimeout = \"5m\"", "over ceilings.timeout");
    check("program = \"/x\"\ntimeout = \"5\"", "must be like \"10s\"");
    check("program = \"/x\"\noutput = \"9MiB\"", "not over ceilings.output");
    check("program = \"/bin/sh\"\nshell = true\nargs = [\"-c\"]", "no args, rest or script");
    check("program = \"/x\"\nsha256 = [\"12\"]", "64 hexadecimal digits");
    check("program = \"/x\"\n[[rule]]\nid = \"r\"\nprogram = \"/y\"", "used twice");
    check("program = \"/x\"\nwrite = [\"root:data/out\"]", "");
    check("program = \"/x\"\nwrite = [\"root:data/../out\"]", "plain way down");
    check("program = \"/x\"\nwrite = [\"/srv\"]", "root:data/out");
    check("program = \"/x\"\nwrite = [\"root:nowhere\"]", "not defined");
    check("program = \"/x\"\ndevices = [\"/dev/nvhost-*\"]", "");
    check("program = \"/x\"\ndevices = [\"/etc/x\"]", "below /dev");
    check("program = \"/x\"\ndevices = [\"/dev/*/x\"]", "last part");
    check("program = \"/x\"\ndevices = [\"/dev/../etc\"]", "below /dev");
    check("program = \"/x\"\nlimits = { cpu = \"150%\" }", "");
    check("program = \"/x\"\nlimits = { cpu = \"1.5\" }", "150%");
    check("program = \"/x\"\nlimits = { memory = \"1KiB\" }", "at least 1MiB");
    check("program = \"/x\"\nlimits = { pids = 0 }", "at least 1");
    check("program = \"/x\"\nsandbox = \"maybe\"", "require or best-effort");
    check("program = \"/x\"\nsecret_env = { T = \"credential:a.b-c\" }", "");
    check("program = \"/x\"\nsecret_env = { T = \"credential:../x\" }", "credential:NAME");
    check("program = \"/x\"\nsecret_env = { T = \"plain\" }", "credential:NAME");
    check("interpreter = \"/bin/sh\"\nscript = \"/opt/x.sh\"", "");
    check("interpreter = \"/bin/sh\"\nscript = \"x.sh\"", "absolute path");
}

#[test]
fn ceilings_bound_what_rules_may_allow() {
    let parse = |ceilings: &str, rule: &str| {
        let text =
            format!("schema = 1\n[ceilings]\n{ceilings}\n[[rule]]\nid = \"r\"\nprogram = \"/x\"\n{rule}\n");
        let policy = Policy::parse(&[("p.toml".to_owned(), text)]).map_err(|e| e.to_string());
        policy.map(|p| (p.rules[0].confinement.memory, p.rules[0].confinement.pids))
    };
    let both = "memory = \"2MiB\"\npids = 9";
    assert_eq!(parse(both, ""), Ok((Some(2 << 20), Some(9))), "a rule that says nothing gets the ceiling");
    assert_eq!(parse(both, "limits = { memory = \"1MiB\", pids = 3 }"), Ok((Some(1 << 20), Some(3))));
    assert_eq!(parse("", ""), Ok((None, None)));
    for rule in ["limits = { memory = \"3MiB\" }", "limits = { pids = 10 }"] {
        assert!(parse(both, rule).unwrap_err().contains("is over ceilings."), "{rule}");
    }
}

#[test]
fn what_cannot_be_had_is_denied_not_ignored() {
    let dir = tempfile::tempdir().unwrap();
    for (rule, want) in [
        // Whatever the board has: there is no slot.
        ("sandbox = \"require\"", "deny:sandbox_unavailable"),
        ("network = false\nsandbox = \"best-effort\"", "allow:r"),
        ("user = \"root\"", "deny:signature_missing"),
        ("launcher = true", "deny:signature_missing"),
        ("user = \"slot\"", "deny:user"),
        ("secret_env = { API_TOKEN = \"credential:x\" }", "deny:capability_missing"),
        ("limits = { nofile = 64 }", "allow:r"),
    ] {
        let policy = dir.path().join("policy.toml");
        std::fs::write(
            &policy,
            format!("schema = 1\n[[rule]]\nid = \"r\"\nprogram = \"/usr/bin/df\"\n{rule}\n"),
        )
        .unwrap();
        set_mode(&policy, 0o600);
        let cases = dir.path().join("cases.toml");
        let case = format!("[[case]]\nid = \"c\"\nargv = [\"/usr/bin/df\"]\nexpect = \"{want}\"\n");
        std::fs::write(&cases, case).unwrap();
        let (_, failures) = decide_all(&policy, cases.to_str().unwrap()).unwrap();
        assert!(failures.is_empty(), "{rule}: {failures:?}");
    }
    // A file that others may write is no policy.
    set_mode(&dir.path().join("policy.toml"), 0o666);
    assert!(dunlin_agent::exec::load(&dir.path().join("policy.toml")).unwrap_err().contains("chmod go-w"));
}

#[test]
fn a_way_that_others_can_change_is_not_trusted() {
    // SAFETY: geteuid cannot fail and touches no memory.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("not root: no directory can be given away");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap();
    set_mode(&root, 0o755);
    for name in ["mine", "theirs"] {
        std::fs::create_dir(root.join(name)).unwrap();
        symlink("/usr/bin/df", root.join(name).join("df")).unwrap();
        symlink("/bin/sh", root.join(name).join("tool")).unwrap();
    }
    std::os::unix::fs::chown(root.join("theirs"), Some(65534), Some(65534)).unwrap();
    symlink(root.join("theirs/df"), root.join("mine/df2")).unwrap();
    for (program, want) in [
        ("mine/df", "allow:r"),
        ("theirs/df", "deny:program_untrusted"),
        ("mine/df2", "deny:program_untrusted"),
        // Its name is no launcher's, what it leads to is.
        ("mine/tool", "deny:program_untrusted"),
        ("mine/none", "deny:program_missing"),
    ] {
        let program = root.join(program).display().to_string();
        let policy = root.join("policy.toml");
        std::fs::write(&policy, format!("schema = 1\n[[rule]]\nid = \"r\"\nprogram = \"{program}\"\n"))
            .unwrap();
        set_mode(&policy, 0o600);
        let cases = root.join("cases.toml");
        let case = format!("[[case]]\nid = \"c\"\nargv = [\"{program}\"]\nexpect = \"{want}\"\n");
        std::fs::write(&cases, case).unwrap();
        let (_, failures) = decide_all(&policy, cases.to_str().unwrap()).unwrap();
        assert!(failures.is_empty(), "{failures:?}");
    }
}

/// One argument under one matcher, and what comes of it.
fn decided(matcher: &str, more: &str, arg: &str) -> String {
    use dunlin_agent::core::policy::{Request, decide};
    let text = format!("schema = 1\n[[rule]]\nid = \"r\"\nprogram = \"/x\"\nargs = [{matcher}]\n{more}\n");
    let policy = Policy::parse(&[("p.toml".to_owned(), text)]).unwrap();
    let argv = ["/x".to_owned(), arg.to_owned()];
    match decide(&policy, Request { argv: &argv, ..Request::default() }) {
        Ok(_) => "allow".into(),
        Err(denial) => denial.to_string(),
    }
}

#[test]
fn elements_are_matched_whole_and_hidden_characters_never() {
    for (matcher, more, arg, want) in [
        ("{ re = 'a|b' }", "", "a", "allow"),
        ("{ re = 'a|b' }", "", "ab", "argument"),
        ("{ re = 'a' }", "", "a\n", "argument_control"),
        ("{ int = [-9, 9] }", "", "-5", "argument_option"),
        ("{ int = [-9, 9], dash = true }", "", "-5", "allow"),
        ("{ int = [-9, 9] }", "", "+5", "argument"),
        ("{ re = '.*' }", "", "-rf", "argument_option"),
        ("{ re = '.*', dash = true }", "", "-rf", "allow"),
        ("{ re = '.*' }", "", "é", "argument_charset"),
        ("{ re = '.*' }", "unicode = true", "é", "allow"),
        ("{ re = '.*' }", "unicode = true", "a\u{202e}b", "argument_charset"),
        ("{ re = '.*' }", "unicode = true", "a\u{61c}b", "argument_charset"),
        ("{ re = '.*' }", "unicode = true", "a\u{2028}b", "argument_charset"),
        ("{ re = '.*' }", "unicode = true", "a\u{ad}b", "argument_charset"),
        ("{ re = '.*' }", "unicode = true", "a\u{e0041}b", "argument_charset"),
        ("{ one_of = [\"-x\", \"y\"] }", "", "-x", "allow"),
    ] {
        assert_eq!(decided(matcher, more, arg), want, "{matcher} {more} {arg:?}");
    }
}
