//! TLS as a client: whom we trust when we connect to an upstream, to Redis or to a database, and
//! who we are there.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_name;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};

use super::pem::{Identity, certificates, is_valid_at};
use super::provider;

/// How one connects to an upstream, checked and ready.
#[derive(Clone)]
pub struct ClientTls {
    pub config: Arc<ClientConfig>,
    /// Of all that it was made of.
    digest: [u8; 32],
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str("ClientTls")
    }
}

impl PartialEq for ClientTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for ClientTls {}

impl ClientTls {
    /// As [`client`]; `identity` is shown to servers that want to know who asks.
    pub fn new(
        ca_file: Option<&Path>,
        identity: Option<&Identity>,
        key: &str,
    ) -> Result<Self, String> {
        let mut config = client(ca_file, key)?;
        let mut digest = Sha256::new();
        for certificate in ca_file.map_or(Ok(Vec::new()), certificates)? {
            digest.update(certificate);
        }
        if let Some(identity) = identity {
            for certificate in &identity.key.cert {
                digest.update(certificate);
            }
            let shown = Arc::new(rustls::sign::SingleCertAndKey::from(Arc::clone(
                &identity.key,
            )));
            config.client_auth_cert_resolver = shown;
        }
        Ok(Self {
            config: Arc::new(config),
            digest: digest.finalize().into(),
        })
    }

    /// The same for servers that speak these protocols (RFC 7301).
    pub fn speaking(&self, protocol: &[u8]) -> ClientConfig {
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![protocol.to_vec()];
        config
    }
}

/// A client configuration that trusts the roots in `ca_file`, or those of the platform; a
/// certificate that stands there itself is trusted too, whoever has signed it. `key` is the name of
/// the setting that an error asks to be set.
pub fn client(ca_file: Option<&Path>, key: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    let mut known = Vec::new();
    match ca_file {
        Some(file) => {
            let shown = file.display();
            for certificate in certificates(file)? {
                known.push(certificate.clone());
                let added = roots.add(certificate);
                added.map_err(|error| format!("{shown}: {error}"))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            roots.add_parsable_certificates(found.certs);
        }
    }
    if roots.is_empty() {
        return Err(format!(
            "no root certificates: install ca-certificates, or set {key}"
        ));
    }
    let by_roots = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
        .build()
        .map_err(|error| error.to_string())?;
    let verifier = Verifier { by_roots, known };
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth())
}

/// By roots, as always; and by its own certificate, to the letter. One that signs itself is mostly
/// marked as that of an authority, and no server may show such a one by the usual rules.
#[derive(Debug)]
struct Verifier {
    by_roots: Arc<WebPkiServerVerifier>,
    known: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        stapled: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.known.iter().any(|known| known == shown) {
            if !is_valid_at(shown, now.as_secs()) {
                return Err(Error::InvalidCertificate(CertificateError::Expired));
            }
            verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.by_roots
            .verify_server_cert(shown, chain, name, stapled, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_roots
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.by_roots
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_roots.supported_verify_schemes()
    }
}
