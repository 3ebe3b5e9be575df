//! The command line of `dunlin-hub`.

use crate::api::Tls;
use crate::config::{Config, ConfigError, Overrides};
use crate::{doctor, run};
use clap::{Parser, Subcommand};
use dunlin_systemd::{InstallError, Options};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

/// Exit code of a configuration or usage error (sysexits EX_USAGE).
const EX_USAGE: u8 = 64;
/// Exit code when the hub cannot start or go on (sysexits EX_UNAVAILABLE).
const EX_UNAVAILABLE: u8 = 69;
/// Exit code when only root may (sysexits EX_NOPERM).
const EX_NOPERM: u8 = 77;

#[derive(Parser)]
#[command(
    name = "dunlin-hub",
    version,
    about = "The hub of a Dunlin fleet: durable queue, QUIC endpoint for agents, HTTP API.",
    after_help = "Exit codes: 0 stopped in order or all well; 1 a check is red; 64 wrong usage or configuration; \
                  69 it could not start (port in use, directory not writable, store in use or corrupt); 77 only root may."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the hub.
    Serve(Common),
    /// Check the configuration and the API's certificate, and say what would be used; opens no port.
    Check(Common),
    /// Look at this machine: directory, disk, ports, clock, store.
    Doctor {
        #[command(flatten)]
        common: Common,
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have systemd run the hub: writes its unit and user, enables and starts it. Doing it again changes nothing.
    InstallService {
        /// Take it away again; configuration, data and user stay.
        #[arg(long)]
        uninstall: bool,
        /// Only say what would be done.
        #[arg(long)]
        dry_run: bool,
        /// Write an image whose root directory this is; nothing of this machine is touched.
        #[arg(long)]
        root: Option<PathBuf>,
        /// Where the program is. Without it, it is put to /usr/local/bin unless it lies below /usr or /opt.
        #[arg(long)]
        bin: Option<PathBuf>,
    },
}

#[derive(clap::Args)]
struct Common {
    /// Configuration file (TOML). Default: /etc/dunlin/hub.toml when it is there.
    #[arg(long, env = "DUNLIN_HUB_CONFIG")]
    config: Option<PathBuf>,
    /// Data directory. Default: /var/lib/dunlin-hub.
    #[arg(long, env = "DUNLIN_HUB_DATA")]
    data: Option<PathBuf>,
    /// Address and UDP port for agents. Default: 0.0.0.0:7443.
    #[arg(long)]
    quic: Option<SocketAddr>,
    /// Address and TCP port of the API. Default: 127.0.0.1:7080.
    #[arg(long)]
    http: Option<SocketAddr>,
}

impl Common {
    fn load(&self) -> Result<Config, ConfigError> {
        let usual = PathBuf::from("/etc/dunlin/hub.toml");
        let file = self.config.clone().or_else(|| usual.exists().then_some(usual));
        let over = Overrides { data: self.data.clone(), quic: self.quic, http: self.http };
        Config::load(file.as_deref(), &over)
    }
}

/// Runs `dunlin-hub` with the process's arguments.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { EX_USAGE } else { 0 });
        }
    };
    match cli.command {
        Command::Serve(common) => with_config(&common, |config| with_tls(config, serve)),
        Command::Check(common) => with_config(&common, |config| with_tls(config, check)),
        Command::InstallService { uninstall, dry_run, root, bin } => {
            install_service(&Options { uninstall, dry_run, root, bin })
        }
        Command::Doctor { common, json } => with_config(&common, |config| doctor::run(config, json)),
    }
}

fn with_config(common: &Common, f: impl FnOnce(&Config) -> ExitCode) -> ExitCode {
    match common.load() {
        Ok(config) => f(&config),
        Err(error) => {
            eprintln!("dunlin-hub: {error}");
            ExitCode::from(EX_USAGE)
        }
    }
}

/// The certificate is part of the configuration: it is looked at before anything is opened.
fn with_tls(config: &Config, f: impl FnOnce(&Config, Option<Tls>) -> ExitCode) -> ExitCode {
    match config.tls.as_ref().map(Tls::load).transpose() {
        Ok(tls) => f(config, tls),
        Err(error) => {
            eprintln!("dunlin-hub: {error}");
            ExitCode::from(EX_USAGE)
        }
    }
}

fn install_service(options: &Options) -> ExitCode {
    match dunlin_systemd::install(&dunlin_systemd::HUB, options, &mut |step| println!("{step}")) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dunlin-hub: {error}");
            ExitCode::from(if matches!(error, InstallError::NotRoot(_)) { EX_NOPERM } else { EX_UNAVAILABLE })
        }
    }
}

fn check(config: &Config, _: Option<Tls>) -> ExitCode {
    let (data, posture) = (config.data.display(), config.posture().as_str());
    println!("configuration is good: data {data}, quic {}, http {} ({posture})", config.quic, config.http);
    ExitCode::SUCCESS
}

fn serve(config: &Config, tls: Option<Tls>) -> ExitCode {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log).unwrap_or_default();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), data = %config.data.display(), "dunlin-hub");
    match run::serve(config, tls) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dunlin-hub: {error:#}");
            ExitCode::from(EX_UNAVAILABLE)
        }
    }
}
