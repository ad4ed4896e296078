//! Certificates, as files for servers and clients.

use std::path::Path;
use std::time::Duration;

use rcgen::{CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

/// A certificate and its key.
pub struct Certificate {
    folder: TempDir,
}

/// Signs the certificates of others.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

fn write(folder: &Path, name: &str, text: String) {
    std::fs::write(folder.join(name), text).expect("it is written");
}

fn path(folder: &TempDir, name: &str) -> String {
    let path = folder.path().join(name);
    path.to_str().expect("UTF-8").to_owned()
}

impl Authority {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let mut made = CertificateParams::new(Vec::new()).expect("no names");
        made.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        made.distinguished_name
            .push(DnType::CommonName, "a test's authority");
        let certificate = made.self_signed(&key).expect("a certificate");
        write(folder.path(), "ca.pem", certificate.pem());
        Self {
            issuer: Issuer::new(made, key),
            folder,
        }
    }

    /// The root.
    pub fn path(&self) -> String {
        path(&self.folder, "ca.pem")
    }

    /// One for these names, of a server or of a client.
    pub fn issue(&self, names: &[&str]) -> Certificate {
        self.issue_for(
            names,
            Duration::from_secs(0),
            Duration::from_secs(30 * 86400),
        )
    }

    /// The same; valid for so long, and for the first time so long from now.
    pub fn issue_for(&self, names: &[&str], from: Duration, lasts: Duration) -> Certificate {
        let folder = tempfile::tempdir().expect("a folder");
        let this = Certificate { folder };
        self.renew(&this, names, from, lasts);
        this
    }

    /// Puts another certificate, with another key, in the place of one.
    pub fn renew(&self, old: &Certificate, names: &[&str], from: Duration, lasts: Duration) {
        let key = KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut made = CertificateParams::new(names).expect("names");
        let now = std::time::SystemTime::now() - Duration::from_secs(60);
        made.not_before = (now + from).into();
        made.not_after = (now + from + lasts).into();
        made.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = made.signed_by(&key, &self.issuer).expect("a certificate");
        write(old.folder.path(), "cert.pem", certificate.pem());
        write(old.folder.path(), "key.pem", key.serialize_pem());
    }
}

impl Certificate {
    /// One that signs itself.
    pub fn of(host: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = KeyPair::generate().expect("a key");
        let made = CertificateParams::new(vec![host.to_owned()]).expect("a name");
        let certificate = made.self_signed(&key).expect("a certificate");
        write(folder.path(), "cert.pem", certificate.pem());
        write(folder.path(), "key.pem", key.serialize_pem());
        Self { folder }
    }

    /// Of the certificate.
    pub fn path(&self) -> String {
        path(&self.folder, "cert.pem")
    }

    pub fn key(&self) -> String {
        path(&self.folder, "key.pem")
    }

    /// The keys of a table of a configuration.
    pub fn keys(&self) -> String {
        format!(
            "cert_file = \"{}\"\nkey_file = \"{}\"\n",
            self.path(),
            self.key()
        )
    }

    /// The certificate in DER, base64.
    pub fn base64(&self) -> String {
        let text = std::fs::read_to_string(self.path()).expect("it is there");
        let lines = text.lines().filter(|line| !line.starts_with("-----"));
        lines.collect()
    }
}
