//! A password that stands in a file: read again for each connection, so that it can be exchanged
//! while the sidecar runs.

use std::path::PathBuf;
use std::pin::Pin;

use fred::error::{Error, ErrorKind};
use fred::types::config::{CredentialProvider, Server};

/// What is sent in `AUTH` and `HELLO`.
#[derive(Debug)]
pub(super) struct PasswordFile {
    pub user: Option<String>,
    pub path: PathBuf,
}

type Credentials = (Option<String>, Option<String>);

impl CredentialProvider for PasswordFile {
    fn fetch<'this, 'server, 'fetched>(
        &'this self,
        _: Option<&'server Server>,
    ) -> Pin<Box<dyn Future<Output = Result<Credentials, Error>> + Send + 'fetched>>
    where
        'this: 'fetched,
        'server: 'fetched,
        Self: 'fetched,
    {
        // A line, once for each connection.
        let read = std::fs::read_to_string(&self.path).map_err(|error| {
            let message = format!("{}: {error}", self.path.display());
            Error::new(ErrorKind::Auth, message)
        });
        let password = read.map(|text| text.lines().next().map(str::to_owned));
        let credentials = password.map(|password| (self.user.clone(), password));
        Box::pin(std::future::ready(credentials))
    }
}
