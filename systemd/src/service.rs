//! The two services and their files.

/// A file that a service needs, as it lies in this directory.
#[derive(Debug, Clone, Copy)]
pub struct File {
    /// Where it goes, absolute.
    pub path: &'static str,
    /// What is in it; it names the program as `/usr/local/bin/PROGRAM`.
    pub text: &'static str,
    /// The owner's once it is there: neither written again nor removed.
    pub kept: bool,
}

/// A program that systemd runs.
#[derive(Debug, Clone, Copy)]
pub struct Service {
    /// Its name, which is its file's.
    pub program: &'static str,
    /// Its files.
    pub files: &'static [File],
    /// Its sysusers file's path among them.
    pub users: &'static str,
    /// Its units, in the order in which they start.
    pub units: &'static [&'static str],
    /// Where its data is, which nothing here removes.
    pub data: &'static [&'static str],
}

/// The agent: uplink and executor.
pub const AGENT: Service = Service {
    program: "dunlin-agent",
    files: &[
        File { path: AGENT_USERS, text: include_str!("../dunlin-agent.sysusers"), kept: false },
        File { path: "/etc/dunlin/policy.toml", text: POLICY, kept: true },
        File {
            path: "/etc/systemd/system/dunlin-exec.service",
            text: include_str!("../dunlin-exec.service"),
            kept: false,
        },
        File {
            path: "/etc/systemd/system/dunlin-agent.service",
            text: include_str!("../dunlin-agent.service"),
            kept: false,
        },
    ],
    users: AGENT_USERS,
    units: &["dunlin-exec.service", "dunlin-agent.service"],
    data: &["/var/lib/dunlin-agent", "/var/lib/dunlin-exec"],
};

/// The hub.
pub const HUB: Service = Service {
    program: "dunlin-hub",
    files: &[
        File { path: HUB_USERS, text: include_str!("../dunlin-hub.sysusers"), kept: false },
        File {
            path: "/etc/systemd/system/dunlin-hub.service",
            text: include_str!("../dunlin-hub.service"),
            kept: false,
        },
    ],
    users: HUB_USERS,
    units: &["dunlin-hub.service"],
    data: &["/var/lib/dunlin-hub"],
};

const AGENT_USERS: &str = "/etc/sysusers.d/dunlin-agent.conf";
const HUB_USERS: &str = "/etc/sysusers.d/dunlin-hub.conf";
const POLICY: &str = include_str!("../policy.toml");

impl Service {
    /// Where the texts say that the program is.
    pub(crate) fn program_path(&self) -> String {
        format!("/usr/local/bin/{}", self.program)
    }
}

/// The policy that a board starts with, for an agent at `program`: everything is denied but its own version. Without slots
/// where there are no users for them.
pub fn policy(program: &str, slots: bool) -> String {
    let text = POLICY.replace(&AGENT.program_path(), program);
    if slots { text } else { text.replace("\nusers = ", "\n# users = ") }
}
