//! Another configuration comes into force while everything runs: because its file has changed, by
//! SIGHUP, or by `POST /reload`. It is checked whole first; a wrong one changes nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tracing::{error, info, warn};

use crate::clock::Timestamp;
use crate::config::changes::Changes;
use crate::config::{Config, NotLoaded, VerdictSource, fingerprint};
use crate::database::Database;
use crate::descriptors;
use crate::guard::Source;
use crate::proxy::Proxy;
use crate::supervisor;

/// How long a changed file must stay as it is before it is read: whoever writes it may not be done.
const SETTLES: Duration = Duration::from_millis(200);

/// Between two looks whether files are to be looked at, where they are not.
const IDLE: Duration = Duration::from_secs(2);

/// What is known of the configuration in force.
#[derive(Clone, Debug)]
pub struct Status {
    /// Of the text of the file that is in force.
    pub digest: String,
    pub loaded: Timestamp,
    /// What the file says and cannot take effect without a restart.
    pub needs_restart: Vec<String>,
    /// What is wrong with the file as it stood when it was read last; nothing where it is in force.
    pub mistakes: Vec<String>,
    pub failed: Option<Timestamp>,
}

/// Reads the configuration again, and puts it in force.
pub struct Reloader {
    proxy: Arc<Proxy>,
    /// The key table's, where it was opened at the start.
    database: Option<Database>,
    /// Held while one is put in force: the next one waits.
    status: Mutex<Status>,
    /// What stood in the files when they were read last, and which files those were.
    read: Mutex<Read>,
}

#[derive(Debug, Default)]
struct Read {
    fingerprint: [u8; 32],
    files: Vec<PathBuf>,
}

/// Why a configuration is not put in force: each mistake with its place.
#[derive(Clone, Debug)]
pub struct Refused(pub Vec<String>);

impl Reloader {
    /// Of a process that has just started.
    pub fn new(proxy: Arc<Proxy>, database: Option<Database>) -> Arc<Self> {
        let status = Status {
            digest: proxy.plan().config.digest.clone(),
            loaded: proxy.now(),
            needs_restart: Vec::new(),
            mistakes: Vec::new(),
            failed: None,
        };
        let reloads = &proxy.metrics().reloads;
        reloads.in_force(&status.digest, status.loaded);
        let this = Self {
            proxy,
            database,
            status: Mutex::new(status),
            read: Mutex::default(),
        };
        // What was written since the start has read it is seen by the first look.
        let config = &this.proxy.plan().config;
        this.note_read(this.files(), config.fingerprint);
        Arc::new(this)
    }

    fn note_read(&self, files: Vec<PathBuf>, fingerprint: [u8; 32]) {
        let mut read = self.read.lock();
        *read = Read { fingerprint, files };
    }

    fn last_read(&self) -> ([u8; 32], Vec<PathBuf>) {
        let read = self.read.lock();
        (read.fingerprint, read.files.clone())
    }

    pub fn proxy(&self) -> &Arc<Proxy> {
        &self.proxy
    }

    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    /// Reads the file and puts it in force, if nothing is wrong with it; what has changed. `why` is
    /// for the log.
    pub fn reload(&self, why: &str) -> Result<Changes, Refused> {
        let mut status = self.lock();
        let told = supervisor::reloading();
        let put = self.put_in_force();
        drop(told);
        match put {
            Ok((changes, digest)) => {
                let now = self.proxy.now();
                let reloads = &self.proxy.metrics().reloads;
                reloads.succeeded.inc();
                reloads.in_force(&digest, now);
                let changed = changes.effective.len();
                info!(
                    why,
                    digest, changed, "the configuration was read again, and is in force"
                );
                let recent = &self.proxy.metrics().recent;
                recent.note(now, format!("reload ({why}): {}", in_short(&changes)));
                for line in &changes.effective {
                    info!("changed: {line}");
                }
                for line in &changes.needs_restart {
                    warn!("not changed, as that needs a restart: {line}");
                }
                *status = Status {
                    digest,
                    loaded: now,
                    needs_restart: changes.needs_restart.clone(),
                    mistakes: Vec::new(),
                    failed: None,
                };
                Ok(changes)
            }
            Err(Refused(mistakes)) => {
                self.proxy.metrics().reloads.refused();
                for mistake in &mistakes {
                    error!("{mistake}");
                }
                let count = mistakes.len();
                error!(
                    why,
                    count, "the configuration has mistakes: the one before stays in force"
                );
                let told = format!("reload ({why}) refused: {}", mistakes.join("; "));
                self.proxy.metrics().recent.note(self.proxy.now(), told);
                status.mistakes.clone_from(&mistakes);
                status.failed = Some(self.proxy.now());
                Err(Refused(mistakes))
            }
        }
    }

    fn put_in_force(&self) -> Result<(Changes, String), Refused> {
        let plan = self.proxy.plan();
        let running = &plan.config;
        let Some(file) = &running.file else {
            let message =
                "there is no configuration file: the built-in one runs (start with --config FILE)";
            return Err(Refused(vec![message.to_owned()]));
        };
        let environment = |name: &str| std::env::var(name).ok();
        let with_others = |others: &[PathBuf]| -> Vec<PathBuf> {
            std::iter::once(file).chain(others).cloned().collect()
        };
        let read = Config::load(file, &environment).map_err(|why| {
            match &why {
                // One that comes later may mend it.
                NotLoaded::Wrong {
                    files, fingerprint, ..
                } => self.note_read(with_others(files), *fingerprint),
                NotLoaded::Unreadable(_) => {
                    let files = self.files();
                    let seen = fingerprint(files.iter().map(|file| -> &Path { file }));
                    self.note_read(files, seen);
                }
            }
            Refused(why.lines())
        })?;
        let (named, seen) = (with_others(&read.named_files), read.fingerprint);
        let mut changes = Changes::between(&running.settings, &read.settings);
        changes.note_secrets(running, &read);
        let mut config = read.in_place_of(running);
        if config.auth.source == VerdictSource::Table && self.database.is_none() {
            // It is opened at the start.
            config.auth.source = running.auth.source.clone();
            config.keep_setting(running, "auth", "source");
            changes.move_to_restart("auth: source ");
        }
        let runs = |name: &str| config.upstreams.iter().any(|(known, _)| **known == *name);
        for route in config.routes.list() {
            if let Some(name) = route.upstream.as_deref().filter(|name| !runs(name)) {
                let message = format!(
                    "route {}: upstream = {name:?} is a new one, and needs a restart",
                    route.path
                );
                return Err(Refused(vec![message]));
            }
        }
        let source = self.source(&config, running, &plan.source)?;
        descriptors::fit_again(&mut config);
        self.proxy
            .open_access_log(&config)
            .map_err(|message| Refused(vec![message]))?;
        self.proxy
            .renew_origin(&config)
            .map_err(|message| Refused(vec![format!("[upstream] {message}")]))?;
        let digest = config.digest.clone();
        self.proxy.exchange(Arc::new(config), source);
        self.note_read(named, seen);
        Ok((changes, digest))
    }

    /// Who says whether keys are good; the same as before where nothing else is said.
    fn source(&self, config: &Config, running: &Config, known: &Source) -> Result<Source, Refused> {
        let is_same = config.auth.source == running.auth.source
            && config.auth.project_field == running.auth.project_field;
        if is_same {
            return Ok(known.clone());
        }
        let metrics = self.proxy.metrics();
        Source::of(&config.auth, metrics, self.database.as_ref())
            .map_err(|message| Refused(vec![message]))
    }

    /// Looks at the files every few seconds, and reads them when what stands in them is not what
    /// was read last, by whoever.
    pub async fn watch(self: Arc<Self>) {
        loop {
            let every = self.proxy.plan().config.reload.every;
            if every.is_zero() {
                tokio::time::sleep(IDLE).await;
                continue;
            }
            tokio::time::sleep(every).await;
            let (known, files) = self.last_read();
            if files.is_empty() {
                // The built-in one has none.
                continue;
            }
            let Some(mut found) = of_files(&files).await.filter(|found| *found != known) else {
                continue;
            };
            loop {
                tokio::time::sleep(SETTLES).await;
                match of_files(&files).await {
                    Some(again) if again != found => found = again,
                    _ => break,
                }
            }
            if found != self.last_read().0 {
                let _ = self.reload("its file has changed");
            }
        }
    }

    /// The file in force, and those that were read for it.
    fn files(&self) -> Vec<PathBuf> {
        let config = &self.proxy.plan().config;
        let files = config.file.iter().chain(&config.named_files);
        files.cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.status.lock()
    }
}

fn in_short(changes: &Changes) -> String {
    match &changes.effective[..] {
        [] => "nothing has changed".to_owned(),
        lines => lines.join("; "),
    }
}

/// What stands in files, read where that may block.
async fn of_files(files: &[PathBuf]) -> Option<[u8; 32]> {
    let files = files.to_vec();
    let reading = tokio::task::spawn_blocking(move || {
        fingerprint(files.iter().map(|file| -> &Path { file }))
    });
    reading.await.ok()
}
