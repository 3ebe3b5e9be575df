//! TLS of the uplink: our raw public key (RFC 7250), the hub's pinned one, TLS 1.3 only.

use crate::clock;
use crate::files;
use dunlin_wire::{Key, version};
use rustls::NamedGroup;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    AlwaysResolvesClientRawPublicKeys, ClientSessionMemoryCache, ClientSessionStore, Resumption,
    Tls12ClientSessionValue, Tls13ClientSessionValue,
};
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls::{ClientConfig, DigitallySignedStruct, Error, SignatureScheme};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// TLS towards the hub whose key is `hub`, as the device whose key is `pkcs8`.
///
/// # Errors
/// When `pkcs8` is not an Ed25519 key.
pub fn client_config(
    pkcs8: &[u8],
    hub: Key,
    tickets: Arc<Tickets>,
) -> Result<quinn::crypto::rustls::QuicClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let public = files::public(pkcs8).map_err(|e| Error::General(e.to_string()))?;
    let signer = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(pkcs8))?;
    let certified = CertifiedKey::new(vec![CertificateDer::from(public.to_spki())], signer);
    let mut config = ClientConfig::builder_with_details(provider.clone(), Arc::new(BootTime))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { hub, provider }))
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(certified))));
    config.alpn_protocols = vec![version::ALPN.to_vec()];
    config.resumption = Resumption::store(tickets);
    config.enable_early_data = true;
    quinn::crypto::rustls::QuicClientConfig::try_from(config).map_err(|e| Error::General(e.to_string()))
}

/// The hub's session tickets, each good for one attempt to connect in 0-RTT.
#[derive(Debug)]
pub struct Tickets {
    cache: ClientSessionMemoryCache,
    left: AtomicUsize,
    keep: AtomicBool,
}

impl Default for Tickets {
    fn default() -> Self {
        Self {
            cache: ClientSessionMemoryCache::new(1),
            left: AtomicUsize::new(0),
            keep: AtomicBool::new(false),
        }
    }
}

impl Tickets {
    /// rustls keeps so many of a server.
    const MOST: usize = 8;

    /// Whether attempts from now on use none: while the hub cannot be reached they would only be burnt.
    pub fn keep(&self, keep: bool) {
        self.keep.store(keep, Relaxed);
    }

    /// How many are left.
    pub fn left(&self) -> usize {
        self.left.load(Relaxed)
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, server: ServerName<'static>, group: NamedGroup) {
        self.cache.set_kx_hint(server, group);
    }

    fn kx_hint(&self, server: &ServerName<'_>) -> Option<NamedGroup> {
        self.cache.kx_hint(server)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, server: ServerName<'static>, value: Tls13ClientSessionValue) {
        self.cache.insert_tls13_ticket(server, value);
        let _ = self.left.fetch_update(Relaxed, Relaxed, |n| Some((n + 1).min(Self::MOST)));
    }

    fn take_tls13_ticket(&self, server: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        if self.keep.load(Relaxed) {
            return None;
        }
        let taken = self.cache.take_tls13_ticket(server);
        let left = if taken.is_some() { self.left().saturating_sub(1) } else { 0 };
        self.left.store(left, Relaxed);
        taken
    }
}

/// The time since the board booted: how old a ticket is must not depend on a clock that is 1970 at first and then set.
#[derive(Debug)]
struct BootTime;

impl TimeProvider for BootTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_millis(clock::boot_ms())))
    }
}

/// Accepts one hub: the one whose key the ticket carried.
#[derive(Debug)]
struct Pinned {
    hub: Key,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if Key::from_spki(end_entity) == Some(self.hub) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(Error::General("the hub's key is not the pinned one".into()))
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
        verify_tls13_signature_with_raw_key(
            message,
            &spki,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
