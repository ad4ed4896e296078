//! TLS as a client: whom we trust when we connect to an upstream, to Redis or to a database.

use std::path::Path;

use rustls::{ClientConfig, RootCertStore};

use super::pem::certificates;
use super::provider;

/// A client configuration that trusts the roots in `ca_file`, or those of the platform. `key` is the
/// name of the setting that an error asks to be set.
pub fn client(ca_file: Option<&Path>, key: &str) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match ca_file {
        Some(file) => {
            let shown = file.display();
            for certificate in certificates(file)? {
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
    let builder = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
