//! Whom the CLI trusts to be the hub, and what it says when it does not.

use super::client::Failure;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{CertificateError, Error, InvalidMessage};
use std::path::Path;
use ureq::tls::{Certificate, RootCerts};

/// With a file only what it holds; without, the roots that browsers trust.
pub(super) fn roots(ca: Option<&Path>) -> Result<RootCerts, Failure> {
    let Some(path) = ca else { return Ok(RootCerts::WebPki) };
    let usage = |why: String| Failure::Usage(format!("--ca {}: {why}", path.display()));
    let text = std::fs::read(path).map_err(|e| usage(e.to_string()))?;
    let found = pinned(&text).map_err(usage)?;
    Ok(RootCerts::from(found.iter().map(|der| Certificate::from_der(der).to_owned())))
}

/// Pure: every certificate of a PEM text. One that cannot be used is an error, and not left out.
fn pinned(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad = "must hold certificates in PEM (`-----BEGIN CERTIFICATE-----`)";
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(|_| bad.to_owned())?;
    let mut store = rustls::RootCertStore::empty();
    for der in &found {
        store.add(der.clone()).map_err(|e| format!("{bad}: {e}"))?;
    }
    if found.is_empty() { Err(bad.into()) } else { Ok(found) }
}

/// Why a call failed, in words for whoever typed it.
pub(super) fn words(error: &ureq::Error) -> String {
    let inner = match error {
        ureq::Error::Rustls(inner) => Some(inner),
        ureq::Error::Io(io) => io.get_ref().and_then(|inner| inner.downcast_ref::<Error>()),
        _ => None,
    };
    inner.map_or_else(|| error.to_string(), tls_words)
}

fn tls_words(error: &Error) -> String {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet, NotValidYetContext,
        UnknownIssuer,
    };
    let hint = match error {
        Error::InvalidCertificate(UnknownIssuer) => {
            "nobody whom this command trusts has signed it; name its file with --ca (DUNLIN_CA)"
        }
        Error::InvalidCertificate(NotValidForName | NotValidForNameContext { .. }) => {
            "it is for another host; call the hub by a name that is in it"
        }
        Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        ) => "renew it, or set the clocks",
        Error::InvalidCertificate(_) if error.to_string().contains("CaUsedAsEndEntity") => {
            "a self-signed one must not say that it is an authority (CA:FALSE)"
        }
        Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            "what answers there speaks no TLS; a hub without a certificate is http://"
        }
        _ => return format!("TLS: {error}"),
    };
    format!("TLS: {error}: {hint}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_certificates_is_refused() {
        let made = rcgen::generate_simple_self_signed(["h".to_owned()]).unwrap();
        let pem = made.cert.pem();
        assert_eq!(pinned(format!("{pem}{pem}").as_bytes()).unwrap().len(), 2);
        for text in ["", "hello", &made.signing_key.serialize_pem(), &pem[..80]] {
            assert!(pinned(text.as_bytes()).is_err(), "{text}");
        }
        let broken = "-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n";
        assert!(pinned(format!("{pem}{broken}").as_bytes()).is_err(), "none is left out");
    }

    #[test]
    fn a_tls_error_says_what_to_do() {
        let unknown = Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let wrapped = std::io::Error::new(std::io::ErrorKind::InvalidData, unknown.clone());
        for error in [ureq::Error::Rustls(unknown), ureq::Error::Io(wrapped)] {
            assert!(words(&error).contains("--ca"), "{}", words(&error));
        }
    }
}
