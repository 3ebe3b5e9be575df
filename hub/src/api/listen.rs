//! The API's listener with TLS. Handshakes are made beside the accept loop, so that a client that says nothing holds up
//! nobody else.

use super::tls::Tls;
use axum::serve::Listener;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once. Who comes when there are so many waits in the kernel's queue until one is over.
const HANDSHAKES_MAX: usize = 256;
/// Pause after an error that is not about one connection, such as no descriptor being left.
const PAUSE: Duration = Duration::from_secs(1);
/// First byte of every TLS connection: the content type of a handshake.
const TLS_HANDSHAKE: u8 = 0x16;
/// What is read of a request that came without TLS, so that its sender gets the answer before the connection ends.
const PLAIN_MAX: u64 = 64 * 1024;
/// The answer to it.
const PLAIN: &str = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n\
{\"error\":{\"code\":\"tls_required\",\"message\":\"this port speaks TLS: use https://\"}}";

/// Hands out connections whose handshake is over.
#[derive(Debug)]
pub struct TlsListener {
    ready: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    addr: SocketAddr,
}

impl TlsListener {
    /// Accepts on `listener` until the listener that is returned is dropped. Each handshake takes the newest of `tls`.
    ///
    /// # Errors
    /// When the listener has no address.
    pub fn new(listener: TcpListener, tls: watch::Receiver<Tls>) -> io::Result<Self> {
        let addr = listener.local_addr()?;
        let (done, ready) = mpsc::channel(HANDSHAKES_MAX);
        tokio::spawn(accept(listener, tls, done, HANDSHAKES_MAX, HANDSHAKE));
        Ok(Self { ready, addr })
    }
}

impl Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The loop ends only with us.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.addr)
    }
}

type Done = mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>;

async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<Tls>,
    done: Done,
    at_once: usize,
    limit: Duration,
) {
    let handshakes = Arc::new(Semaphore::new(at_once));
    loop {
        let next = async {
            let permit = handshakes.clone().acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            next = next => next,
            () = done.closed() => return,
        };
        let Ok(permit) = permit else { return };
        match accepted {
            Ok((stream, peer)) => {
                let acceptor = TlsAcceptor::from(tls.borrow().0.clone());
                tokio::spawn(shake_hands(acceptor, stream, peer, done.clone(), permit, limit));
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                tracing::error!(subsystem = "http", %error, "cannot accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}

/// The permit is held until the connection is handed over, so that what waits is bounded too.
async fn shake_hands(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    done: Done,
    _permit: OwnedSemaphorePermit,
    limit: Duration,
) {
    let shaken = tokio::time::timeout(limit, async {
        let mut first = [0];
        match stream.peek(&mut first).await {
            Ok(0) => Ok(None),
            Ok(_) if first[0] != TLS_HANDSHAKE => turn_away(stream).await.map(|()| None),
            Ok(_) => acceptor.accept(stream).await.map(Some),
            Err(error) => Err(error),
        }
    });
    match shaken.await {
        // Nobody is there to take it when the API has stopped.
        Ok(Ok(Some(stream))) => drop(done.send((stream, peer)).await),
        Ok(Ok(None)) => {}
        Ok(Err(error)) => tracing::debug!(subsystem = "http", %peer, %error, "no TLS handshake"),
        Err(_) => tracing::debug!(subsystem = "http", %peer, "the TLS handshake took too long"),
    }
}

/// Tells a client that speaks plain HTTP what to do instead. Closing with unread bytes would lose the answer, so they are
/// read, up to a bound.
async fn turn_away(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(PLAIN.as_bytes()).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream.take(PLAIN_MAX), &mut tokio::io::sink()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::tls::test_pair;
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    const LIMIT: Duration = Duration::from_millis(300);

    /// A listener, its address, and the certificate to trust.
    async fn listener(at_once: usize) -> (TlsListener, SocketAddr, CertificateDer<'static>) {
        let (cert, key) = test_pair();
        let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.clone()], key)
            .unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = tcp.local_addr().unwrap();
        let (done, ready) = mpsc::channel(at_once);
        // The sender may go: the last value stays.
        let (_, current) = watch::channel(Tls(Arc::new(config)));
        tokio::spawn(accept(tcp, current, done, at_once, LIMIT));
        (TlsListener { ready, addr }, addr, cert)
    }

    fn provider() -> Arc<rustls::crypto::CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }

    async fn connect(
        addr: SocketAddr,
        cert: &CertificateDer<'static>,
    ) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(cert.clone()).unwrap();
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = "localhost".try_into().unwrap();
        let stream = TcpStream::connect(addr).await?;
        tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await
    }

    #[tokio::test]
    async fn a_silent_client_blocks_nobody() {
        let (mut listener, addr, cert) = listener(2).await;
        let _silent = TcpStream::connect(addr).await.unwrap();
        let (client, (_, peer)) = tokio::join!(connect(addr, &cert), listener.accept());
        assert_eq!(client.unwrap().get_ref().0.local_addr().unwrap(), peer);
    }

    #[tokio::test]
    async fn handshakes_at_once_are_bounded_and_end() {
        let (mut listener, addr, cert) = listener(2).await;
        let mut silent = Vec::new();
        for _ in 0..4 {
            silent.push(TcpStream::connect(addr).await.unwrap());
        }
        // Both places are taken twice over: ours comes after the limit, and not before.
        let early = tokio::time::timeout(LIMIT / 2, connect(addr, &cert)).await;
        assert!(early.is_err(), "there was a place");
        let (client, _) = tokio::join!(connect(addr, &cert), listener.accept());
        client.unwrap();
        for mut stream in silent {
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0, "closed after its time");
        }
    }

    #[tokio::test]
    async fn plain_http_is_told_what_to_do() {
        let (_listener, addr, _) = listener(2).await;
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 400") && text.contains("use https://"), "{text}");
    }

    #[tokio::test]
    async fn the_port_is_free_once_the_listener_is_dropped() {
        let (listener, addr, _) = listener(2).await;
        drop(listener);
        let freed = async {
            while TcpStream::connect(addr).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(5), freed).await.unwrap();
    }
}
