//! A certificate that signs itself, as files for a server.

use tempfile::TempDir;

pub struct Certificate {
    folder: TempDir,
}

impl Certificate {
    pub fn of(host: &str) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let key = rcgen::KeyPair::generate().expect("a key");
        let made = rcgen::CertificateParams::new(vec![host.to_owned()]).expect("a name");
        let certificate = made.self_signed(&key).expect("a certificate");
        let write = |name: &str, text: String| {
            std::fs::write(folder.path().join(name), text).expect("it is written");
        };
        write("cert.pem", certificate.pem());
        write("key.pem", key.serialize_pem());
        Self { folder }
    }

    fn file(&self, name: &str) -> String {
        let path = self.folder.path().join(name);
        path.to_str().expect("UTF-8").to_owned()
    }

    /// Of the certificate, which is its own root.
    pub fn path(&self) -> String {
        self.file("cert.pem")
    }

    pub fn key(&self) -> String {
        self.file("key.pem")
    }
}
