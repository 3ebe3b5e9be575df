//! Whom a board takes signed jobs from: operators whose keys an offline root has certified.
//!
//! A [`Cert`] travels with a job or in a [`KeySet`]; a set also revokes. Boards know the roots from a file of their own,
//! so that whoever carries these, the hub among them, can hold them back and nothing more.

use crate::ids::{FleetId, Key, Tag};
use crate::limits;
use crate::seal::{Context, Sealed, decode};
use serde::{Deserialize, Serialize};

/// What a key may sign. Append only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Programs with arguments.
    Shell,
    /// Free lines for a shell, under a rule with `shell = true`.
    Line,
    /// Programs that move an actuator.
    Actuation,
    /// Orchestrator runs, each step of which must be covered by itself.
    Run,
    /// Requests to hooks, the rule of which is `hook:NAME`.
    Hook,
}

impl Kind {
    /// Each of them.
    pub const ALL: [Kind; 5] = [Kind::Shell, Kind::Line, Kind::Actuation, Kind::Run, Kind::Hook];

    /// The stable word.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Shell => "shell",
            Kind::Line => "line",
            Kind::Actuation => "actuation",
            Kind::Run => "run",
            Kind::Hook => "hook",
        }
    }

    /// The kind of a word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// How far a key reaches. An empty list allows nothing, `*` in it everything.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scope {
    /// What it may sign.
    pub kinds: Vec<Kind>,
    /// Rules of the board's policy, by id.
    pub rules: Vec<String>,
    /// Users that such a rule runs as: `slot`, `root`, or a name.
    pub users: Vec<String>,
    /// The board must carry one of these tags, in its own configuration.
    pub tags: Vec<Tag>,
}

impl Scope {
    /// Whether it reaches a job of this kind under this rule.
    pub fn covers(&self, kind: Kind, rule: &str, user: &str) -> bool {
        let has = |list: &[String], word: &str| list.iter().any(|entry| entry == "*" || entry == word);
        self.kinds.contains(&kind) && has(&self.rules, rule) && has(&self.users, user)
    }

    /// Whether it reaches a board that carries `held`.
    pub fn reaches(&self, held: &[Tag]) -> bool {
        self.tags.iter().any(|tag| tag.as_str() == "*" || held.iter().any(|h| tag.matches(h)))
    }
}

/// What a root says of an operator's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cert {
    /// The operator's key.
    pub key: Key,
    /// Whose it is, for people.
    pub name: String,
    /// The fleet it is for.
    pub fleet: FleetId,
    /// How far it reaches.
    pub scope: Scope,
    /// Its end, in milliseconds since the epoch.
    pub not_after_ms: u64,
}

impl Cert {
    fn is_in_bounds(&self) -> bool {
        let long = |list: &[String]| {
            list.len() > limits::SCOPE_MAX || list.iter().any(|word| word.len() > limits::TEXT_MAX)
        };
        let scope = &self.scope;
        !self.key.is_small_order()
            && self.name.len() <= limits::TEXT_MAX
            && scope.kinds.len() <= limits::SCOPE_MAX
            && scope.tags.len() <= limits::SCOPE_MAX
            && !long(&scope.rules)
            && !long(&scope.users)
    }

    /// The certificate in `sealed`, when one of `roots` signed it and it is in its bounds.
    pub fn open(sealed: &Sealed, roots: &[Key]) -> Option<Self> {
        let open = |root| sealed.open::<Cert>(Context::Cert, root);
        roots.iter().find_map(open).filter(Cert::is_in_bounds)
    }

    /// What `sealed` says, whoever signed it. For display, and for who signs a job.
    pub fn peek(sealed: &Sealed) -> Option<Self> {
        sealed.peek().filter(Cert::is_in_bounds)
    }
}

/// Keys of a fleet's operators, as of a version. A board takes only a greater one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeySet {
    /// Grows with each set.
    pub version: u64,
    /// Operators, for jobs that bring no certificate.
    pub certs: Vec<Cert>,
    /// Keys from which nothing is taken any more, whatever certificate they have.
    pub revoked: Vec<Key>,
}

impl KeySet {
    /// The set that `bytes` are, when one of `roots` signed it and it is in its bounds.
    pub fn open(bytes: &[u8], roots: &[Key]) -> Option<Self> {
        let sealed: Sealed = decode(bytes, limits::KEYS_MAX)?;
        let open = |root| sealed.open::<KeySet>(Context::Keys, root);
        roots.iter().find_map(open).filter(KeySet::is_in_bounds)
    }

    /// What `bytes` say, whoever signed them: all that a hub can know.
    pub fn peek(bytes: &[u8]) -> Option<Self> {
        decode::<Sealed>(bytes, limits::KEYS_MAX)?.peek().filter(KeySet::is_in_bounds)
    }

    fn is_in_bounds(&self) -> bool {
        self.version > 0
            && self.certs.len() <= limits::KEYS_LEN_MAX
            && self.revoked.len() <= limits::KEYS_LEN_MAX
            && self.certs.iter().all(Cert::is_in_bounds)
    }
}
