//! Keys of roots and operators. They never leave the machine of whoever holds them: no command here talks to the hub but
//! `keys push`, which sends what a root signed.

use super::args::duration;
use super::client::{Client, Failure};
use crate::clock;
use clap::{Args, Subcommand};
use data_encoding::BASE64URL_NOPAD;
use dunlin_wire::keys::{Cert, KeySet, Kind, Scope};
use dunlin_wire::seal::{Context, Sealed, decode, from_text, to_text};
use dunlin_wire::{FleetId, Key, Tag, limits};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const PREFIX: &str = "dunlin-key1.";

#[derive(Subcommand)]
pub(super) enum KeyCommand {
    /// Make a key, for a root or an operator. The file is a secret (0600); one that is there is never replaced.
    New {
        /// Where; ~/.config/dunlin/key by default.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Print the public key.
    Show {
        /// The file; ~/.config/dunlin/key by default.
        file: Option<PathBuf>,
    },
    /// Certify an operator's key with a root's: what it may sign, and until when.
    Cert(CertArgs),
}

#[derive(Args)]
pub(super) struct CertArgs {
    /// The root's key file.
    #[arg(long)]
    root: PathBuf,
    /// The operator's public key, as `key show` prints it.
    #[arg(long)]
    key: String,
    /// Whose it is.
    #[arg(long, default_value = "")]
    name: String,
    /// The fleet, as `dunlin-agent check` prints it on a board.
    #[arg(long)]
    fleet: String,
    /// What it may sign: shell (programs), line (free shell lines), actuation (programs that move an actuator), run
    /// (orchestrator runs, whose steps must be covered too), hook (under the rule `hook:NAME`).
    #[arg(long, value_delimiter = ',', default_value = "shell")]
    kind: Vec<String>,
    /// Rules of the board's policy it may use, or `*`.
    #[arg(long, value_delimiter = ',', required = true)]
    rule: Vec<String>,
    /// Users it may run as: slot, root, a name, or `*`.
    #[arg(long, value_delimiter = ',', default_value = "slot")]
    user: Vec<String>,
    /// Boards must carry one of these tags in their own configuration; `*` is every board.
    #[arg(long, value_delimiter = ',', required = true)]
    tag: Vec<String>,
    /// How long it is good for, like 90d.
    #[arg(long, value_parser = duration)]
    expires: u64,
    /// Where; standard output by default.
    #[arg(long)]
    out: Option<PathBuf>,
}

#[derive(Subcommand)]
pub(super) enum KeysCommand {
    /// Make a set of operators' keys and revoked ones, signed by a root. It takes the place of the one before.
    Make {
        /// The root's key file.
        #[arg(long)]
        root: PathBuf,
        /// Its version: greater than any before.
        #[arg(long)]
        version: u64,
        /// A certificate for jobs that bring none; may be repeated.
        #[arg(long)]
        cert: Vec<PathBuf>,
        /// A public key from which nothing is taken any more; may be repeated.
        #[arg(long)]
        revoke: Vec<String>,
        /// Where; standard output by default.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Send a set through the hub to every board; those that are away get it when they connect.
    Push {
        /// The file.
        file: PathBuf,
    },
}

pub(super) fn usage(text: impl Into<String>) -> Failure {
    Failure::Usage(text.into())
}

/// A text file of at most `max` bytes.
pub(super) fn read(path: &Path, max: u64) -> Result<String, Failure> {
    let name = path.display();
    let len = std::fs::metadata(path).map_err(|e| usage(format!("{name}: {e}")))?.len();
    if len > max {
        return Err(usage(format!("{name}: over {max} bytes")));
    }
    std::fs::read_to_string(path).map_err(|e| usage(format!("{name}: {e}")))
}

/// A line to a file that must not be there yet, or to standard output.
pub(super) fn write(out: Option<&Path>, text: &str, mode: u32) -> Result<(), Failure> {
    let Some(path) = out else {
        println!("{text}");
        return Ok(());
    };
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let done = file.and_then(|mut file| writeln!(file, "{text}").and_then(|()| file.sync_all()));
    done.map_err(|e| usage(format!("{}: {e}", path.display())))
}

fn usual() -> Result<PathBuf, Failure> {
    let config = std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from);
    let config = config.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config")));
    config.map(|c| c.join("dunlin/key")).ok_or_else(|| usage("say where the key is: HOME is not set"))
}

/// A secret key from its file, and its public half.
pub(super) fn load(path: &Path) -> Result<(Ed25519KeyPair, Key), Failure> {
    let name = path.display();
    let text = read(path, 4096)?;
    if std::fs::metadata(path).is_ok_and(|meta| meta.mode() & 0o077 != 0) {
        return Err(usage(format!("{name}: others can read it (chmod 600 {name})")));
    }
    let bad = || usage(format!("{name}: not a key file; `dunlin key new` makes one"));
    let coded = text.trim().strip_prefix(PREFIX).ok_or_else(bad)?;
    let bytes = BASE64URL_NOPAD.decode(coded.as_bytes()).map_err(|_| bad())?;
    let pair = Ed25519KeyPair::from_pkcs8(&bytes).map_err(|_| bad())?;
    let key = pair.public_key().as_ref().try_into().map(Key).map_err(|_| bad())?;
    Ok((pair, key))
}

fn public(text: &str) -> Result<Key, Failure> {
    Key::from_hex(text).ok_or_else(|| usage(format!("`{text}` is no public key: 64 hexadecimal digits")))
}

/// A fleet's id from 32 hexadecimal digits.
pub(super) fn fleet(text: &str) -> Result<FleetId, Failure> {
    let bytes = data_encoding::HEXLOWER_PERMISSIVE.decode(text.trim().as_bytes()).ok();
    let id = bytes.and_then(|bytes| bytes.try_into().ok()).map(FleetId);
    id.ok_or_else(|| usage(format!("fleet `{text}` is not 32 hexadecimal digits")))
}

/// A certificate from its file, unread but for what it says.
pub(super) fn cert(path: &Path) -> Result<(Sealed, Cert), Failure> {
    let text = read(path, 2 * limits::CERT_MAX as u64)?;
    let sealed: Option<Sealed> =
        from_text(Context::Cert, &text, limits::CERT_MAX).and_then(|b| decode(&b, limits::CERT_MAX));
    let read = sealed.and_then(|sealed| Cert::peek(&sealed).map(|cert| (sealed, cert)));
    read.ok_or_else(|| usage(format!("{}: not a certificate; `dunlin key cert` makes one", path.display())))
}

fn encode(sealed: &Sealed) -> Vec<u8> {
    postcard::to_stdvec(sealed).expect("sealed bytes always encode: they have no unsized parts")
}

pub(super) fn key(command: KeyCommand) -> Result<(), Failure> {
    match command {
        KeyCommand::New { out } => {
            let path = out.map_or_else(usual, Ok)?;
            if let Some(dir) = path.parent() {
                std::fs::create_dir_all(dir).map_err(|e| usage(format!("{}: {e}", dir.display())))?;
            }
            let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new());
            let made = made.map_err(|_| usage("no random numbers from the system"))?;
            write(Some(&path), &format!("{PREFIX}{}", BASE64URL_NOPAD.encode(made.as_ref())), 0o600)?;
            println!("{}", load(&path)?.1);
        }
        KeyCommand::Show { file } => println!("{}", load(&file.map_or_else(usual, Ok)?)?.1),
        KeyCommand::Cert(args) => certify(args)?,
    }
    Ok(())
}

fn certify(args: CertArgs) -> Result<(), Failure> {
    let kind = |word: &String| {
        Kind::parse(word)
            .ok_or_else(|| usage(format!("--kind `{word}` must be shell, line, actuation, run or hook")))
    };
    let tag = |text: &String| text.parse::<Tag>().map_err(|e| usage(format!("--tag `{text}`: {e}")));
    let cert = Cert {
        key: public(&args.key)?,
        name: args.name,
        fleet: fleet(&args.fleet)?,
        scope: Scope {
            kinds: args.kind.iter().map(kind).collect::<Result<_, _>>()?,
            rules: args.rule,
            users: args.user,
            tags: args.tag.iter().map(tag).collect::<Result<_, _>>()?,
        },
        not_after_ms: clock::now().wall + args.expires,
    };
    let sealed = Sealed::make(Context::Cert, &cert, &load(&args.root)?.0);
    let bytes = encode(&sealed);
    if bytes.len() > limits::CERT_MAX || Cert::peek(&sealed).is_none() {
        return Err(usage(format!("the scope is too large: at most {} of each", limits::SCOPE_MAX)));
    }
    write(args.out.as_deref(), &to_text(Context::Cert, &bytes), 0o644)
}

/// `keys make`.
pub(super) fn make(command: KeysCommand) -> Result<(), Failure> {
    let KeysCommand::Make { root, version, cert: certs, revoke, out } = command else { return Ok(()) };
    let certs = certs.iter().map(|path| cert(path).map(|(_, cert)| cert));
    let set = KeySet {
        version,
        certs: certs.collect::<Result<_, _>>()?,
        revoked: revoke.iter().map(|text| public(text)).collect::<Result<_, _>>()?,
    };
    let bytes = encode(&Sealed::make(Context::Keys, &set, &load(&root)?.0));
    if KeySet::peek(&bytes).is_none() {
        let most = limits::KEYS_LEN_MAX;
        return Err(usage(format!("a version is 1 or more; a set has at most {most} keys of each kind")));
    }
    write(out.as_deref(), &to_text(Context::Keys, &bytes), 0o644)
}

/// `keys push`.
pub(super) fn push(client: &Client, file: &Path) -> Result<(), Failure> {
    let text = read(file, 2 * limits::KEYS_MAX as u64)?;
    let bytes = from_text(Context::Keys, &text, limits::KEYS_MAX);
    let bytes = bytes
        .ok_or_else(|| usage(format!("{}: not a key set; `dunlin keys make` makes one", file.display())))?;
    let answer = client.post("/v1/keys", &json!({"keySet": BASE64URL_NOPAD.encode(&bytes)}))?;
    println!(
        "version {} sent to {} boards; others get it when they connect",
        answer["version"], answer["sent"]
    );
    Ok(())
}
