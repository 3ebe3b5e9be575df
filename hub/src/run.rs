//! Puts the parts together and drives the engine: one thread owns it, everything else sends it events.

use crate::api::{self, ApiState, Tls, TlsListener};
use crate::clock;
use crate::config::{Config, TlsFiles};
use crate::event::{Answer, ConnId, Effect, Event, NodeView};
use crate::feed::Feed;
use crate::hub::{Hub, Setup};
use crate::link::{self, Identity, Lines, Outbox, Peers};
use crate::store::{Sessions, Store, StoreError, StoreOptions, Token, Writer};
use anyhow::{Context, Result};
use dunlin_wire::version;
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};

/// Events that may wait for the loop; whoever sends more waits.
const EVENTS_MAX: usize = 4096;
/// Events of one transaction at most.
const BATCH_MAX: usize = 1024;
/// How long the store's engine may be behind what its log holds, in milliseconds. Who reads does not wait so long: a reader says
/// that it is there.
const BEHIND_MS: u64 = 1000;
/// systemd is told that the loop turns no more often than this, in milliseconds: it takes a system call.
const WATCHDOG_MS: u64 = 1000;
/// How long a stopping hub waits for each of its parts.
const STOP: Duration = Duration::from_secs(2);
/// How often it is kept where agents are.
const PEERS: Duration = Duration::from_secs(1);

/// Runs the hub until it is told to stop. `tls` is what `config.tls` names, loaded; without it the API is plain HTTP.
///
/// # Errors
/// What kept it from starting.
pub fn serve(config: &Config, tls: Option<Tls>) -> Result<()> {
    std::fs::create_dir_all(&config.data)
        .with_context(|| format!("{}: cannot make the data directory", config.data.display()))?;
    let options = StoreOptions { bytes_max: config.store_bytes_max, sync: true };
    let store = Arc::new(Store::open(&config.data.join("store"), options)?);
    tracing::info!(subsystem = "store", path = %config.data.join("store").display(), "open");
    let identity = Identity::load_or_make(&config.data.join("hub.key"))?;
    owner_token(&store, &config.data)?;
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").context("the kernel's boot id")?;
    let now_s = || clock::now().wall / 1000;
    let epoch = [version::ALPN, &link::UPLOADS.to_be_bytes()].concat();
    let sessions = Sessions::open(&config.data.join("sessions"), &epoch, boot.trim(), now_s)?;
    let sessions = Arc::new(sessions);
    // A thread for agents and one for the API. Two threads that share their tasks wake each other for each.
    let thread = |name: &str| {
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        runtime.worker_threads(1).thread_name(name).enable_all().build()
    };
    let (link, api) = (thread("hub-link")?, thread("hub-api")?);
    api.block_on(run(config, tls, store, identity, sessions, link.handle()))
}

async fn run(
    config: &Config,
    tls: Option<Tls>,
    store: Arc<Store>,
    identity: Identity,
    sessions: Arc<Sessions>,
    link: &Handle,
) -> Result<()> {
    let peers = Arc::new(Peers::default());
    let lost = sessions.peers()?;
    let setup = link::Setup { identity: &identity, sessions: sessions.clone(), lost, peers: peers.clone() };
    let entered = link.enter();
    let endpoint = link::bind(config.quic, setup).with_context(|| format!("QUIC on {}", config.quic))?;
    drop(entered);
    let bound = endpoint.local_addr()?;
    let listener = tokio::net::TcpListener::bind(config.http)
        .await
        .with_context(|| format!("HTTP on {}", config.http))?;
    let http = listener.local_addr()?;
    let setup = Setup {
        timing: config.timing.clone(),
        queue_max: config.queue_max,
        keep_tasks: config.keep_tasks,
        addrs: config.ticket_addrs(bound),
        key: identity.key.clone(),
        seed: random_u64()?,
    };
    let (events, inbox) = mpsc::channel(EVENTS_MAX);
    let (outboxes, new_outboxes) = mpsc::channel(EVENTS_MAX);
    let feed = Arc::new(Feed::new(store.read(|view| view.newest_event())?));
    let (opened, is_open) = oneshot::channel();
    let (stored, told) = (store.clone(), feed.clone());
    let driver = std::thread::Builder::new().name("hub-loop".into()).spawn(move || {
        let open = || -> Result<_, StoreError> {
            let mut writer = stored.writer()?;
            let hub = Hub::open(&mut writer, setup, clock::now())?;
            Ok((writer, hub))
        };
        match open() {
            Ok((writer, hub)) => {
                drop(opened.send(Ok(hub.fleet())));
                Driver { hub, writer, inbox, new_outboxes, outboxes: HashMap::new(), feed: told, owed: None }
                    .run();
            }
            Err(error) => drop(opened.send(Err(error))),
        }
    })?;
    let fleet = is_open.await.context("the loop ended")??;
    tracing::info!(subsystem = "scheduler", %fleet, "running");
    let lines = Lines { events: events.clone(), outboxes, peers: peers.clone() };
    let keeping = tokio::spawn(keep_peers(peers, sessions.clone()));
    let accepting = link.spawn(link::accept(endpoint.clone(), lines, config.connections_max));
    tracing::info!(subsystem = "quic", addr = %bound, key = %identity.public(), "listening");
    tracing::info!(subsystem = "http", addr = %http, posture = config.posture().as_str(), "listening");
    // They are made before the hub serves, and none while it does.
    let tokens = store.read(|view| view.tokens())?;
    let state = ApiState::new(store, events, feed, tokens, config.rate_per_s, config.burst);
    let (stop, stopped) = watch::channel(false);
    let stop_api = wait_for(stopped);
    // Listened to before anybody can connect, and without a certificate too: by itself the signal would end the hub.
    let hangups = signal(SignalKind::hangup())?;
    let mut api = match tls.zip(config.tls.clone()) {
        None => tokio::spawn(api::serve(listener, state, stop_api)),
        Some((tls, files)) => {
            let (newest, current) = watch::channel(tls);
            tokio::spawn(load_again(files, newest, hangups));
            tokio::spawn(api::serve(TlsListener::new(listener, current)?, state, stop_api))
        }
    };
    dunlin_systemd::notify("READY=1");
    stop_signal().await?;
    dunlin_systemd::notify("STOPPING=1");
    tracing::info!("stopping");
    stop.send_replace(true);
    endpoint.close(0u32.into(), b"leaving");
    let _ = tokio::time::timeout(STOP, endpoint.wait_idle()).await;
    let _ = accepting.await;
    // Open event streams do not end by themselves.
    if tokio::time::timeout(STOP, &mut api).await.is_err() {
        api.abort();
        let _ = api.await;
    }
    let _ = tokio::task::spawn_blocking(move || driver.join()).await;
    keeping.abort();
    sessions.close()?;
    Ok(())
}

/// Where agents are is kept for the next process, when it is another than a moment ago.
async fn keep_peers(peers: Arc<Peers>, sessions: Arc<Sessions>) {
    let mut kept = None;
    loop {
        tokio::time::sleep(PEERS).await;
        let list = peers.list();
        if kept.as_ref() != Some(&list) {
            if let Err(error) = sessions.put_peers(&list) {
                tracing::warn!(%error, "where agents are was not kept");
            }
            kept = Some(list);
        }
    }
}

async fn wait_for(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// Loads the certificate again at every SIGHUP, so that a new one needs no restart. A pair that is not good is logged,
/// and the one before it goes on.
async fn load_again(files: TlsFiles, newest: watch::Sender<Tls>, mut hangups: Signal) {
    while hangups.recv().await.is_some() {
        match Tls::load(&files) {
            Ok(tls) => {
                newest.send_replace(tls);
                tracing::info!(subsystem = "http", "certificate loaded again");
            }
            Err(error) => tracing::error!(subsystem = "http", %error, "the certificate before it goes on"),
        }
    }
}

async fn stop_signal() -> Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}

/// The owner of the engine.
struct Driver<'s> {
    hub: Hub,
    writer: Writer<'s>,
    inbox: mpsc::Receiver<Event>,
    new_outboxes: mpsc::Receiver<(ConnId, Outbox)>,
    outboxes: HashMap<ConnId, Outbox>,
    feed: Arc<Feed>,
    // When the store's engine has to commit, in monotonic milliseconds.
    owed: Option<u64>,
}

impl Driver<'_> {
    fn run(mut self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime,
            Err(error) => return tracing::error!(%error, "the loop has no timer"),
        };
        let (mut waiting, mut told) = (Vec::new(), 0);
        loop {
            let now = clock::now();
            if now.mono >= told + WATCHDOG_MS {
                dunlin_systemd::notify("WATCHDOG=1");
                told = now.mono;
            }
            let due = self.hub.poll_timeout().into_iter().chain(self.owed).min();
            let due = due.map_or(60_000, |at| at.saturating_sub(now.mono));
            let received = runtime.block_on(async {
                let wait = Duration::from_millis(due);
                tokio::time::timeout(wait, self.inbox.recv_many(&mut waiting, BATCH_MAX)).await
            });
            if received == Ok(0) {
                return self.hub.settle(&mut self.writer, clock::now());
            }
            let closed: Vec<ConnId> = waiting
                .iter()
                .filter_map(|event| if let Event::Closed { conn, .. } = event { Some(*conn) } else { None })
                .collect();
            let effects = self.hub.step(&mut self.writer, std::mem::take(&mut waiting), clock::now());
            while let Ok((conn, outbox)) = self.new_outboxes.try_recv() {
                self.outboxes.insert(conn, outbox);
            }
            // A board that waits for its job goes before whoever is told that the job was taken: each that is told wakes
            // a thread. Nothing orders an answer and a message, and messages keep their own order.
            let is_answer = |effect: &Effect| matches!(effect, Effect::Reply(..) | Effect::Events(_));
            let (answers, messages): (Vec<_>, Vec<_>) = effects.into_iter().partition(is_answer);
            for effect in messages.into_iter().chain(answers) {
                self.release(effect);
            }
            for conn in closed {
                self.outboxes.remove(&conn);
            }
            self.catch_up();
        }
    }

    /// Has the store's engine commit when that is due, or somebody waits to read.
    fn catch_up(&mut self) {
        let now = clock::now();
        if self.writer.is_behind() {
            let owed = *self.owed.get_or_insert(now.mono + BEHIND_MS);
            if now.mono < owed && !self.writer.is_wanted() {
                return;
            }
            for effect in self.hub.catch_up(&mut self.writer, now) {
                self.release(effect);
            }
        }
        self.owed = None;
    }

    fn release(&mut self, effect: Effect) {
        match effect {
            Effect::Send(conn, message) => {
                if let Some(outbox) = self.outboxes.get(&conn) {
                    outbox.send(message);
                }
            }
            Effect::Ask(conn) => {
                if let Some(outbox) = self.outboxes.get(&conn) {
                    outbox.ask();
                }
            }
            Effect::Close(conn, code) => {
                if let Some(outbox) = self.outboxes.remove(&conn) {
                    outbox.close(code);
                }
            }
            // Whoever asked may have gone; the answer stands all the same.
            Effect::Reply(reply, mut answer) => {
                if let Ok(answer) = &mut answer {
                    self.fill_in(answer);
                }
                drop(reply.send(answer));
            }
            Effect::Events(events) => self.feed.push(events),
        }
    }
}

impl Driver<'_> {
    /// Adds what only the connections know.
    fn fill_in(&self, answer: &mut Answer) {
        match answer {
            Answer::Node(view) => self.fill_in_node(view),
            Answer::Nodes(views) => views.iter_mut().for_each(|view| self.fill_in_node(view)),
            Answer::Metrics(figures) => {
                self.outboxes.values().for_each(|outbox| figures.traffic += outbox.traffic());
            }
            _ => {}
        }
    }

    fn fill_in_node(&self, view: &mut NodeView) {
        if let Some(outbox) = view.conn.and_then(|conn| self.outboxes.get(&conn)) {
            view.rtt_us = Some(outbox.rtt_us());
            view.traffic += outbox.traffic();
        }
    }
}

/// The first start makes a token for the owner, in a file that only the hub's user can read.
fn owner_token(store: &Store, data: &Path) -> Result<()> {
    let path = data.join("owner.token");
    let hash = |text: &str| -> Result<[u8; 32]> { Ok(digest(&SHA256, text.as_bytes()).as_ref().try_into()?) };
    let stored = store.read(|view| view.tokens())?;
    if stored.iter().any(|token| token.name == "owner") {
        return Ok(());
    }
    let mut secret = [0; 24];
    SystemRandom::new()
        .fill(&mut secret)
        .map_err(|_| anyhow::anyhow!("no random numbers from the system"))?;
    let text = format!("dunlin_{}", data_encoding::HEXLOWER.encode(&secret));
    link::write_secret(&path, format!("{text}\n").as_bytes()).with_context(|| path.display().to_string())?;
    let mut write = store.write();
    write.put_token(&Token { name: "owner".into(), hash: hash(&text)?, created_ms: clock::now().wall })?;
    write.commit()?;
    tracing::info!(path = %path.display(), "made the owner's API token");
    Ok(())
}

fn random_u64() -> Result<u64> {
    let mut bytes = [0; 8];
    SystemRandom::new().fill(&mut bytes).map_err(|_| anyhow::anyhow!("no random numbers from the system"))?;
    Ok(u64::from_ne_bytes(bytes))
}
