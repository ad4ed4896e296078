//! TLS towards clients: which certificate a client is shown, and whether it must show one.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use rustls::pki_types::CertificateDer;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use rustls::{RootCertStore, ServerConfig};
use sha2::{Digest, Sha256};

use super::names::Names;
use super::pem::{Identity, certificates};
use super::provider;

/// Whose certificates clients have to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    /// A client without one is not let in.
    Required,
    /// One that is shown must be right.
    Optional,
}

/// The certificates of one listener, checked and ready.
#[derive(Clone)]
pub struct ServerTls {
    pub config: Arc<ServerConfig>,
    /// Of all its certificates.
    pub names: Arc<Names>,
    /// When the first of them expires.
    pub expires: SystemTime,
    /// Of all that it was made of.
    digest: [u8; 32],
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "ServerTls of {:?}", self.names)
    }
}

impl PartialEq for ServerTls {
    fn eq(&self, other: &Self) -> bool {
        self.digest == other.digest
    }
}

impl Eq for ServerTls {}

/// Picks a certificate by the name that the client wants (RFC 6066 §3); the first one where none is
/// for it, or it names nothing.
#[derive(Debug)]
struct ByName(Vec<Identity>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let wanted = hello.server_name();
        let fits = |identity: &&Identity| wanted.is_some_and(|name| identity.names.cover(name));
        let found = self.0.iter().find(fits).or(self.0.first());
        found.map(|identity| Arc::clone(&identity.key))
    }
}

impl ServerTls {
    /// Of these certificates, of which there is one at least. `client_ca` names a file of roots.
    pub fn new(
        identities: Vec<Identity>,
        client_ca: Option<(&PathBuf, ClientAuth)>,
        is_tls_13_alone: bool,
    ) -> Result<Self, String> {
        let (mut digest, mut clients) = (Sha256::new(), Sha256::new());
        let mut names = Names::default();
        for identity in &identities {
            names.add(&identity.names);
            let chain = identity.key.cert.iter();
            chain.for_each(|certificate| digest.update(certificate));
        }
        let expires = identities.iter().map(|identity| identity.expires).min();
        let versions: &[_] = if is_tls_13_alone {
            &[&rustls::version::TLS13]
        } else {
            &[&rustls::version::TLS13, &rustls::version::TLS12]
        };
        let builder = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let builder = match client_ca {
            None => builder.with_no_client_auth(),
            Some((file, auth)) => {
                let mut roots = RootCertStore::empty();
                for root in certificates(file)? {
                    clients.update(&root);
                    let added = roots.add(root);
                    added.map_err(|error| format!("{}: {error}", file.display()))?;
                }
                clients.update([auth as u8]);
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
                let verifier = match auth {
                    ClientAuth::Required => verifier,
                    ClientAuth::Optional => verifier.allow_unauthenticated(),
                };
                let verifier = verifier.build().map_err(|error| error.to_string())?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(ByName(identities)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if client_ca.is_none() {
            // Of the stateless kind: no table grows here.
            config.ticketer = tickets()?;
        } else {
            // Who resumes shows no certificate again, and it may have expired, or its root be gone.
            config.send_tls13_tickets = 0;
        }
        digest.update(clients.finalize());
        digest.update([u8::from(is_tls_13_alone)]);
        Ok(Self {
            config: Arc::new(config),
            names: Arc::new(names),
            expires: expires.unwrap_or(SystemTime::UNIX_EPOCH),
            digest: digest.finalize().into(),
        })
    }
}

/// Tickets of this process: they outlive a change of certificates.
fn tickets() -> Result<Arc<dyn ProducesTickets>, String> {
    static MADE: OnceLock<Arc<dyn ProducesTickets>> = OnceLock::new();
    if let Some(made) = MADE.get() {
        return Ok(Arc::clone(made));
    }
    let made = rustls::crypto::aws_lc_rs::Ticketer::new().map_err(|error| error.to_string())?;
    Ok(Arc::clone(MADE.get_or_init(|| made)))
}

/// A client's certificate as RFC 9440 §2.2 passes it on.
pub fn client_certificate(chain: &[CertificateDer<'_>]) -> Option<http::HeaderValue> {
    use base64::Engine as _;
    let shown = base64::engine::general_purpose::STANDARD.encode(chain.first()?);
    http::HeaderValue::try_from(format!(":{shown}:")).ok()
}
