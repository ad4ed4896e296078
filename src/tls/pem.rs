//! Certificates and keys as files hold them, in PEM.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::names::Names;
use super::provider;

/// Who one is: a certificate with its chain, and its key.
#[derive(Clone, Debug)]
pub struct Identity {
    pub key: Arc<CertifiedKey>,
    pub names: Names,
    pub expires: SystemTime,
}

/// All certificates of a file; an error says what is wrong with it.
pub fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let shown = file.display();
    let read = CertificateDer::pem_file_iter(file).map_err(|error| format!("{shown}: {error}"))?;
    let found: Result<Vec<_>, _> = read.collect();
    let found = found.map_err(|error| format!("{shown}: {error}"))?;
    if found.is_empty() {
        return Err(format!("{shown} holds no certificate (BEGIN CERTIFICATE)"));
    }
    Ok(found)
}

impl Identity {
    /// Reads and checks it; an error says which file is wrong, and in what.
    pub fn read(certificate: &Path, key: &Path) -> Result<Self, String> {
        let chain = certificates(certificate)?;
        let (shown, shown_key) = (certificate.display(), key.display());
        let (names, expires) = about(&chain[0]).map_err(|why| format!("{shown}: {why}"))?;
        let key = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
            rustls::pki_types::pem::Error::NoItemsFound => {
                format!("{shown_key} holds no private key (BEGIN PRIVATE KEY)")
            }
            error => format!("{shown_key}: {error}"),
        })?;
        let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| match error {
            rustls::Error::InconsistentKeys(_) => {
                format!("the key in {shown_key} is not that of the certificate in {shown}")
            }
            error => format!("{shown_key}: {error}"),
        })?;
        Ok(Self {
            key: Arc::new(key),
            names,
            expires,
        })
    }
}

/// The names of a certificate, and until when it is valid, which it must be now.
fn about(certificate: &CertificateDer<'_>) -> Result<(Names, SystemTime), String> {
    let (_, read) = X509Certificate::from_der(certificate)
        .map_err(|error| format!("its certificate cannot be read: {error}"))?;
    let validity = read.validity();
    let now = SystemTime::now();
    let (begins, ends) = (
        time(validity.not_before.timestamp()),
        time(validity.not_after.timestamp()),
    );
    let shown = |time: SystemTime| humantime::format_rfc3339_seconds(time);
    if now > ends {
        return Err(format!("its certificate has expired on {}", shown(ends)));
    }
    if now < begins {
        return Err(format!(
            "its certificate is not valid before {}",
            shown(begins)
        ));
    }
    let alternatives = read.subject_alternative_name();
    let alternatives =
        alternatives.map_err(|error| format!("its names cannot be read: {error}"))?;
    let names = alternatives.into_iter().flat_map(|found| {
        found
            .value
            .general_names
            .iter()
            .filter_map(|name| match name {
                GeneralName::DNSName(name) => Some((*name).to_owned()),
                GeneralName::IPAddress(bytes) => address(bytes),
                _ => None,
            })
    });
    Ok((Names::new(names), ends))
}

/// Whether a certificate is valid at this Unix time in seconds.
pub fn is_valid_at(certificate: &CertificateDer<'_>, unix: u64) -> bool {
    X509Certificate::from_der(certificate).is_ok_and(|(_, read)| {
        let (validity, unix) = (read.validity(), i64::try_from(unix).unwrap_or(i64::MAX));
        (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&unix)
    })
}

fn address(bytes: &[u8]) -> Option<String> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(std::net::Ipv4Addr::from(four).to_string());
    }
    let sixteen = <[u8; 16]>::try_from(bytes).ok()?;
    Some(std::net::Ipv6Addr::from(sixteen).to_string())
}

fn time(unix: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(u64::try_from(unix).unwrap_or(0))
}
