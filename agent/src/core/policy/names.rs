//! Programs that run other programs, and variables that change what a program is.

/// Programs that start whatever their arguments say. A rule for one needs `launcher = true`.
const LAUNCHERS: &[&str] = &[
    "ash",
    "awk",
    "at",
    "batch",
    "chrt",
    "csh",
    "fish",
    "flock",
    "lua",
    "luajit",
    "numactl",
    "pkexec",
    "screen",
    "tcsh",
    "tmux",
    "bash",
    "busybox",
    "chroot",
    "curl",
    "dash",
    "docker",
    "doas",
    "ed",
    "emacs",
    "env",
    "expect",
    "find",
    "gawk",
    "gdb",
    "git",
    "ionice",
    "ksh",
    "less",
    "ltrace",
    "make",
    "man",
    "mawk",
    "more",
    "mount",
    "nice",
    "node",
    "nohup",
    "nsenter",
    "parallel",
    "perl",
    "php",
    "podman",
    "python",
    "rsync",
    "ruby",
    "run-parts",
    "runuser",
    "script",
    "sed",
    "setpriv",
    "setsid",
    "sh",
    "socat",
    "ssh",
    "start-stop-daemon",
    "stdbuf",
    "strace",
    "su",
    "sudo",
    "systemctl",
    "systemd-run",
    "tar",
    "taskset",
    "tclsh",
    "timeout",
    "toybox",
    "unshare",
    "vi",
    "vim",
    "watch",
    "wget",
    "xargs",
    "zip",
    "zsh",
];

/// Whether the program of this path is a launcher: by its name, versions (`python3.11`) and loaders (`ld-linux*`) too.
pub(crate) fn is_launcher(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or(program);
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    name.starts_with("ld-")
        || name.starts_with("ld.so")
        || LAUNCHERS.contains(&stem)
        || LAUNCHERS.contains(&name)
}

/// Variables that no rule may allow: they load code, change the shell, or are the agent's own.
const VARIABLES: &[&str] = &[
    "BASH_ENV",
    "CDPATH",
    "DBUS_SESSION_BUS_ADDRESS",
    "ENV",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "HOME",
    "HOSTALIASES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "LOCALDOMAIN",
    "LOCPATH",
    "LOGNAME",
    "MALLOC_TRACE",
    "NIS_PATH",
    "NLSPATH",
    "NOTIFY_SOCKET",
    "PATH",
    "PROMPT_COMMAND",
    "PS4",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "RUBYLIB",
    "RUBYOPT",
    "SHELL",
    "SHELLOPTS",
    "SSH_ASKPASS",
    "SSH_AUTH_SOCK",
    "TERMINFO",
    "TMPDIR",
    "TZDIR",
    "USER",
    "WATCHDOG_USEC",
    "XDG_RUNTIME_DIR",
    "JDK_JAVA_OPTIONS",
    "_JAVA_OPTIONS",
    "OPENSSL_CONF",
    "OPENSSL_ENGINES",
    "OPENSSL_MODULES",
    "CUDA_INJECTION64_PATH",
    "CUDA_INJECTION32_PATH",
    "EDITOR",
    "VISUAL",
    "PAGER",
];

/// Beginnings of such names.
const PREFIXES: &[&str] =
    &["LD_", "PYTHON", "PERL", "GIT_", "NODE_", "LISTEN_", "DUNLIN_", "BASH_FUNC_", "RUBY", "DYLD_", "npm_"];

/// Whether no rule may let a task set this variable.
pub(super) fn is_forbidden_variable(name: &str) -> bool {
    let ordinary = name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    let digit_first = name.bytes().next().is_none_or(|b| b.is_ascii_digit());
    !ordinary
        || digit_first
        || VARIABLES.contains(&name)
        || PREFIXES.iter().any(|p| name.starts_with(p))
        || name.to_ascii_lowercase().ends_with("_proxy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchers_are_known_by_name_and_version() {
        for program in
            ["/bin/sh", "/usr/bin/python3.11", "/lib64/ld-linux-x86-64.so.2", "/usr/bin/find", "/bin/perl5"]
        {
            assert!(is_launcher(program), "{program}");
        }
        for program in ["/usr/bin/df", "/usr/bin/tail", "/opt/app/bin/infer", "/usr/bin/shred"] {
            assert!(!is_launcher(program), "{program}");
        }
    }

    #[test]
    fn variables_that_change_programs_are_forbidden() {
        for name in
            ["LD_PRELOAD", "PATH", "A=B", "", "1A", "HTTPS_PROXY", "https_proxy", "GIT_SSH", "DUNLIN_FENCE"]
        {
            assert!(is_forbidden_variable(name), "{name}");
        }
        assert!(!is_forbidden_variable("RUN_LABEL"));
    }
}
