//! The API's certificate: two PEM files, refused with file and fix before a port is opened.

use crate::config::TlsFiles;
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, Error, ServerConfig};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{field} {path}: {problem}")]
pub struct TlsError {
    /// The field of the configuration.
    pub field: &'static str,
    /// The file that it names.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a file, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// Others than its owner can read the key.
    #[error("others can read it (chmod 600 {})", .0.display())]
    Readable(PathBuf),
    /// There is no certificate in it.
    #[error("must hold the certificate in PEM, and then those that lead to its root: {0}")]
    NoCertificate(String),
    /// There is no key in it.
    #[error("must hold one private key in PEM (PKCS#8, PKCS#1 or SEC1) without a passphrase: {0}")]
    NoKey(String),
    /// They are of two pairs.
    #[error("is not the key of the certificate in {}; name the two that were made together", .0.display())]
    Mismatch(PathBuf),
}

/// How the API speaks TLS: 1.2 or newer, HTTP/1.1 in it.
#[derive(Debug, Clone)]
pub struct Tls(pub(super) Arc<ServerConfig>);

impl Tls {
    /// Reads certificate and key.
    ///
    /// # Errors
    /// The first thing that is wrong with either.
    pub fn load(files: &TlsFiles) -> Result<Self, TlsError> {
        let fault = |which: Which, problem| {
            let (field, path) = match which {
                Which::Cert => ("api.tls_cert", &files.cert),
                Which::Key => ("api.tls_key", &files.key),
            };
            TlsError { field, path: path.clone(), problem }
        };
        let cert = std::fs::read(&files.cert).map_err(|e| fault(Which::Cert, e.into()))?;
        let key = secret(&files.key).map_err(|problem| fault(Which::Key, problem))?;
        let config = server_config(&cert, &key).map_err(|refusal| match refusal {
            Refusal::Cert(why) => fault(Which::Cert, Problem::NoCertificate(why)),
            Refusal::Key(why) => fault(Which::Key, Problem::NoKey(why)),
            Refusal::Mismatch => fault(Which::Key, Problem::Mismatch(files.cert.clone())),
        })?;
        Ok(Self(Arc::new(config)))
    }
}

enum Which {
    Cert,
    Key,
}

/// Reads a file that nobody but its owner may read. The opened file is asked, so that it is the one that is read.
fn secret(path: &Path) -> Result<Vec<u8>, Problem> {
    let mut file = std::fs::File::open(path)?;
    if file.metadata()?.mode() & 0o077 != 0 {
        return Err(Problem::Readable(path.to_owned()));
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Why two texts are no certificate and its key.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    Cert(String),
    Key(String),
    Mismatch,
}

/// Pure: two PEM texts to what rustls needs.
fn server_config(cert: &[u8], key: &[u8]) -> Result<ServerConfig, Refusal> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
    let chain = chain.map_err(|e| Refusal::Cert(words(&e)))?;
    if chain.is_empty() {
        return Err(Refusal::Cert(words(&pem::Error::NoItemsFound)));
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| Refusal::Key(words(&e)))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|e| Refusal::Key(e.to_string()))?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(|e| match e {
            Error::InconsistentKeys(_) => Refusal::Mismatch,
            Error::InvalidCertificate(CertificateError::BadEncoding) => {
                Refusal::Cert("the first one is no X.509 certificate".into())
            }
            Error::InvalidCertificate(e) => Refusal::Cert(format!("{e:?}")),
            e => Refusal::Key(e.to_string()),
        })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// What is wrong with a PEM text, without any of it: it may be a key.
fn words(error: &pem::Error) -> String {
    let words = match error {
        pem::Error::NoItemsFound => "there is none",
        pem::Error::MissingSectionEnd { .. } => "a section does not end",
        pem::Error::IllegalSectionStart { .. } => "a section begins wrong",
        pem::Error::Base64Decode(_) => "a section is not base64",
        _ => "it cannot be read",
    };
    words.to_owned()
}

/// A self-signed certificate for `localhost`, and its key.
#[cfg(test)]
pub(super) fn test_pair() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
    (made.cert.pem(), made.signing_key.serialize_pem())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn texts_that_are_no_pair_are_told_apart() {
        let ((cert, key), (_, other)) = (test_pair(), test_pair());
        let (cert, key, other) = (cert.as_bytes(), key.as_bytes(), other.as_bytes());
        let config = server_config(cert, key).ok().unwrap();
        assert_eq!(config.alpn_protocols, [b"http/1.1"]);
        let none = || "there is none".to_owned();
        for (cert, key, want) in [
            (cert, other, Refusal::Mismatch),
            (b"", key, Refusal::Cert(none())),
            (key, key, Refusal::Cert(none())),
            (cert, b"hello", Refusal::Key(none())),
            (cert, cert, Refusal::Key(none())),
            (&cert[..100], key, Refusal::Cert("a section does not end".into())),
            (
                b"-----BEGIN CERTIFICATE-----\naGVsbG8=\n-----END CERTIFICATE-----\n",
                key,
                Refusal::Cert("the first one is no X.509 certificate".into()),
            ),
        ] {
            assert_eq!(server_config(cert, key).err(), Some(want));
        }
    }

    #[test]
    fn a_file_that_is_wrong_is_named_with_its_fix() {
        let ((cert, key), (_, other)) = (test_pair(), test_pair());
        let dir = tempfile::tempdir().unwrap();
        let files = TlsFiles { cert: dir.path().join("cert.pem"), key: dir.path().join("key.pem") };
        let said = || Tls::load(&files).map(|_| ()).map_err(|e| e.to_string());
        let mode =
            |mode| std::fs::set_permissions(&files.key, std::fs::Permissions::from_mode(mode)).unwrap();
        let check = |want: &[&str]| {
            let error = said().unwrap_err();
            assert!(want.iter().all(|w| error.contains(w)), "{error}");
        };
        check(&["api.tls_cert", "cert.pem", "No such file"]);
        std::fs::write(&files.cert, cert).unwrap();
        check(&["api.tls_key", "key.pem", "No such file"]);
        std::fs::write(&files.key, key).unwrap();
        mode(0o640);
        check(&["api.tls_key", "others can read it (chmod 600 ", "key.pem)"]);
        mode(0o600);
        assert_eq!(said(), Ok(()));
        std::fs::write(&files.key, other).unwrap();
        check(&["api.tls_key", "is not the key of the certificate in", "cert.pem"]);
    }
}
