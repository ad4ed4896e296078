//! Several upstreams as one origin: a request goes where its route says.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use http::Request;

use crate::config::Config;
use crate::error::{Failure, FailureKind};
use crate::metrics::UpstreamReading;

use super::{Answer, Origin, OriginBody};

/// In the extensions of a request: the name of the upstream that it goes to.
#[derive(Clone, Debug)]
pub struct UpstreamName(pub Arc<str>);

/// The origin of `[upstream]`, or the built-in one, and those that have names.
pub struct Several {
    pub main: Arc<dyn Origin>,
    pub named: Vec<(Arc<str>, Arc<dyn Origin>)>,
}

impl Origin for Several {
    fn answer(&self, request: Request<OriginBody>) -> Answer<'_> {
        let Some(UpstreamName(wanted)) = request.extensions().get() else {
            return self.main.answer(request);
        };
        match self.named.iter().find(|(name, _)| name == wanted) {
            Some((_, origin)) => origin.answer(request),
            None => {
                let message = format!("there is no upstream named {wanted:?}: it needs a restart");
                let failure = Failure::new(FailureKind::Internal, message);
                Box::pin(std::future::ready(Err(failure)))
            }
        }
    }

    fn finish(&self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        self.main.finish()
    }

    fn can_renew(&self, config: &Config) -> Result<(), String> {
        self.main.can_renew(config)?;
        let mut named = self.named.iter();
        named.try_for_each(|(_, origin)| origin.can_renew(config))
    }

    fn renew(&self, config: &Config) -> Result<(), String> {
        self.main.renew(config)?;
        let mut named = self.named.iter();
        named.try_for_each(|(_, origin)| origin.renew(config))
    }

    fn database_connections(&self) -> (u64, u64) {
        self.main.database_connections()
    }

    fn readings(&self) -> Vec<UpstreamReading> {
        let named = self.named.iter().map(|(_, origin)| origin);
        std::iter::once(&self.main)
            .chain(named)
            .flat_map(|origin| origin.readings())
            .collect()
    }
}
