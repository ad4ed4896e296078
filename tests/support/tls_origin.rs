//! An origin behind TLS, by a certificate that nobody else has signed.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Answers each connection once: "secret".
pub struct TlsOrigin {
    pub port: u16,
    /// The certificate of `localhost` that it shows, as PEM.
    pub root: String,
}

impl TlsOrigin {
    pub async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]);
        let made = made.expect("a certificate");
        let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.expect("a key"))
            .expect("they fit");
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(server));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else {
                    continue;
                };
                let mut buffer = Vec::new();
                while !buffer.ends_with(b"\r\n\r\n") {
                    if !matches!(stream.read_buf(&mut buffer).await, Ok(1..)) {
                        break;
                    }
                }
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret";
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
            }
        });
        Self {
            port,
            root: made.cert.pem(),
        }
    }
}
