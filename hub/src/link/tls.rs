//! Identity and TLS: one Ed25519 key per peer, raw (RFC 7250), TLS 1.3 only.

use crate::clock;
use dunlin_wire::{Key, version};
use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair};
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{AlwaysResolvesServerRawPublicKeys, StoresServerSessions};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, ServerConfig, SignatureScheme};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Sessions given with each handshake: an attempt to connect that nobody answers costs the agent one, and it spends two at
/// most before it takes the hub for away.
const TICKETS: usize = 2;

/// Why an identity cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file system said no.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What it said.
        source: std::io::Error,
    },
    /// The file does not hold a key. It is not replaced: agents have this hub's key pinned.
    #[error("{0}: not an Ed25519 key in PKCS#8; restore it from a backup")]
    NotAKey(PathBuf),
    /// The system has no randomness.
    #[error("no random numbers from the system")]
    Random,
}

/// The hub's key.
pub struct Identity {
    /// For signing tickets.
    pub key: Arc<Ed25519KeyPair>,
    pkcs8: Vec<u8>,
}

impl Identity {
    /// Reads the key, or makes it the first time (mode 0600).
    ///
    /// # Errors
    /// When it cannot be read, or is not a key.
    pub fn load_or_make(path: &Path) -> Result<Self, IdentityError> {
        let io = |source| IdentityError::Io { path: path.to_owned(), source };
        let pkcs8 = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                let made = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new())
                    .map_err(|_| IdentityError::Random)?;
                write_secret(path, made.as_ref()).map_err(io)?;
                made.as_ref().to_vec()
            }
            Err(e) => return Err(io(e)),
        };
        let key = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| IdentityError::NotAKey(path.to_owned()))?;
        Ok(Self { key: Arc::new(key), pkcs8 })
    }

    /// A secret of its own for each purpose, the same after a restart (HMAC-SHA256 of the purpose under the key).
    pub(super) fn derive(&self, purpose: &str) -> [u8; 32] {
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &self.pkcs8);
        let mut secret = [0; 32];
        secret.copy_from_slice(ring::hmac::sign(&key, format!("dunlin {purpose}").as_bytes()).as_ref());
        secret
    }

    /// The public key.
    pub fn public(&self) -> Key {
        let mut key = [0; 32];
        key.copy_from_slice(self.key.public_key().as_ref());
        Key(key)
    }
}

/// Writes a file that only its owner can read, whole or not at all.
///
/// # Errors
/// The file system's.
pub fn write_secret(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let new = path.with_extension("new");
    let _ = std::fs::remove_file(&new);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => std::fs::File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

pub(super) fn server_config(
    identity: &Identity,
    sessions: Arc<dyn StoresServerSessions>,
) -> Result<quinn::crypto::rustls::QuicServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let der = PrivatePkcs8KeyDer::from(identity.pkcs8.clone());
    let signer = rustls::crypto::ring::sign::any_eddsa_type(&der)?;
    let certified = CertifiedKey::new(vec![CertificateDer::from(identity.public().to_spki())], signer);
    let mut config = ServerConfig::builder_with_details(provider.clone(), Arc::new(Steady::new()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(AnyDevice(provider)))
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(Arc::new(certified))));
    config.alpn_protocols = vec![version::ALPN.to_vec()];
    // 0-RTT: sessions that the hub keeps, each used once, and not tickets that it could be made to take twice.
    config.session_storage = sessions;
    config.send_tls13_tickets = TICKETS;
    config.max_early_data_size = u32::MAX;
    quinn::crypto::rustls::QuicServerConfig::try_from(config).map_err(|e| Error::General(e.to_string()))
}

/// The time as the hub took it at its start, counted on from there: a clock that is set must not age every session.
#[derive(Debug)]
struct Steady {
    ahead_ms: u64,
}

impl Steady {
    fn new() -> Self {
        let now = clock::now();
        Self { ahead_ms: now.wall.saturating_sub(now.mono) }
    }
}

impl TimeProvider for Steady {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(clock::now().mono + self.ahead_ms)))
    }
}

/// Lets any Ed25519 key shake hands: which key may do what, the registry says, on every connection.
#[derive(Debug)]
struct AnyDevice(Arc<CryptoProvider>);

impl ClientCertVerifier for AnyDevice {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match Key::from_spki(end_entity) {
            Some(_) => Ok(ClientCertVerified::assertion()),
            None => Err(Error::InvalidCertificate(rustls::CertificateError::BadEncoding)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &spki, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
