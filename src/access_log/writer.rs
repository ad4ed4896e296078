//! The thread that writes.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use http::StatusCode;
use tracing::warn;

use crate::config::{self, LogPlace};
use crate::metrics::{CacheResult, Metrics};

use super::{Answered, Asked, Entry, Told, line};

/// Lines that may wait for the thread.
const QUEUE: usize = 8192;

/// How long a line may wait for others before it is written out.
const LINGERS: Duration = Duration::from_millis(200);

/// What is written out at once.
const BLOCK: usize = 64 << 10;

/// The access log of a process, as long as a plan wants it so.
#[derive(Debug)]
pub struct AccessLog {
    pub config: config::AccessLog,
    sender: SyncSender<Message>,
    metrics: Arc<Metrics>,
}

#[derive(Debug)]
enum Message {
    Line(Box<Entry>),
    /// The file was moved away: one of the same name is begun.
    Reopen,
    /// Told when all before it is written.
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// Opens the place and starts the thread; an error says what is wrong with the place.
    pub fn start(config: &config::AccessLog, metrics: &Arc<Metrics>) -> Result<Arc<Self>, String> {
        let out = open(&config.place)?;
        let (sender, receiver) = sync_channel(QUEUE);
        let writer = Writer {
            config: config.clone(),
            out,
            metrics: Arc::clone(metrics),
        };
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || writer.run(&receiver))
            .map_err(|error| format!("[access_log]: no thread: {error}"))?;
        Ok(Arc::new(Self {
            config: config.clone(),
            sender,
            metrics: Arc::clone(metrics),
        }))
    }

    /// A request is over. Of those that went well one in `sample` is written, of the others each.
    pub fn ended(&self, answered: Answered, bytes: u64, is_cut: bool) {
        let is_error = answered.status.is_server_error() || is_cut;
        if !is_error && self.config.sample > 1 && fastrand::u64(..self.config.sample) != 0 {
            return;
        }
        let total = answered.asked.began.elapsed();
        let entry = Box::new(Entry {
            answered,
            bytes,
            total,
            is_cut,
        });
        match self.sender.try_send(Message::Line(entry)) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.metrics.access_log_dropped.inc();
            }
        }
    }

    /// A client was answered without its request having been read, or understood.
    pub fn refused(&self, client: IpAddr, status: StatusCode, reason: &'static str, bytes: u64) {
        let told = Told {
            route: None,
            result: CacheResult::Bypass.as_str(),
            reason,
            observed: None,
        };
        let asked = Asked::unread(&self.config, client);
        self.ended(asked.answered(status, Some(told)), bytes, false);
    }

    /// Waits, not for longer than `limit`, until what was handed over is written.
    pub fn flush(&self, limit: Duration) {
        let (written, told) = sync_channel(1);
        if self.sender.try_send(Message::Flush(written)).is_ok() {
            let _ = told.recv_timeout(limit);
        }
    }

    /// Begins a file of the same name, where the one that is written to was moved away.
    pub fn reopen(&self) {
        // Where the queue is full for so long, the next order does it.
        let _ = self.sender.try_send(Message::Reopen);
    }
}

fn open(place: &LogPlace) -> Result<Box<dyn Write + Send>, String> {
    match place {
        LogPlace::Stdout => Ok(Box::new(io::stdout())),
        LogPlace::File(path) => Ok(Box::new(open_file(path)?)),
    }
}

fn open_file(path: &PathBuf) -> Result<File, String> {
    let opened = OpenOptions::new().create(true).append(true).open(path);
    opened.map_err(|error| {
        format!(
            "[access_log] to: {} cannot be written: {error}; name a file in a folder that this \
                user may write, or \"stdout\"",
            path.display()
        )
    })
}

struct Writer {
    config: config::AccessLog,
    out: Box<dyn Write + Send>,
    metrics: Arc<Metrics>,
}

impl Writer {
    /// Until nobody can send any more.
    fn run(mut self, lines: &Receiver<Message>) {
        let mut block = String::new();
        let mut count = 0;
        loop {
            let message = if block.is_empty() {
                lines.recv().map_err(|_| RecvTimeoutError::Disconnected)
            } else {
                lines.recv_timeout(LINGERS)
            };
            let is_last = matches!(message, Err(RecvTimeoutError::Disconnected));
            let mut is_due = message.is_err();
            match message {
                Ok(Message::Line(entry)) => {
                    line::write(&mut block, &self.config, &entry);
                    count += 1;
                    is_due = block.len() >= BLOCK;
                }
                Ok(Message::Reopen) => {
                    self.flush(&mut block, &mut count);
                    match open(&self.config.place) {
                        Ok(out) => self.out = out,
                        Err(why) => warn!("{why}"),
                    }
                }
                Ok(Message::Flush(written)) => {
                    self.flush(&mut block, &mut count);
                    let _ = written.send(());
                }
                Err(_) => {}
            }
            if is_due {
                self.flush(&mut block, &mut count);
            }
            if is_last {
                return;
            }
        }
    }

    /// What cannot be written is lost, and counted: the next lines may fare better.
    fn flush(&mut self, block: &mut String, count: &mut u64) {
        let written = self
            .out
            .write_all(block.as_bytes())
            .and_then(|()| self.out.flush());
        match written {
            Ok(()) => self.metrics.access_log_lines.inc_by(*count),
            Err(_) => self.metrics.access_log_dropped.inc_by(*count),
        };
        block.clear();
        *count = 0;
    }
}
