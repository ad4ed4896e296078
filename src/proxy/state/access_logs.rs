//! The access log in force: the same one for all plans that want the same.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::access_log::AccessLog;
use crate::config::{self, LogFormat};
use crate::metrics::Metrics;

#[derive(Debug, Default)]
pub struct AccessLogs {
    is_on: AtomicBool,
    current: Mutex<Option<Arc<AccessLog>>>,
}

impl AccessLogs {
    /// Whether there may be one: a request looks at nothing else then.
    pub fn is_on(&self) -> bool {
        self.is_on.load(Ordering::Relaxed)
    }

    /// The log that this configuration wants; an error says what is wrong with its place.
    pub fn of(
        &self,
        config: &config::AccessLog,
        metrics: &Arc<Metrics>,
    ) -> Result<Option<Arc<AccessLog>>, String> {
        let mut current = self.current.lock();
        if config.format == LogFormat::Off {
            *current = None;
        } else if current.as_ref().is_none_or(|log| log.config != *config) {
            *current = Some(AccessLog::start(config, metrics)?);
        }
        self.is_on.store(current.is_some(), Ordering::Relaxed);
        Ok(current.clone())
    }

    pub fn current(&self) -> Option<Arc<AccessLog>> {
        self.current.lock().clone()
    }
}
