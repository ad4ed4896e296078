//! Purges that the fleet's log does not have yet, in a small file: they outlive this process.
//!
//! Whoever keeps it holds a lock on the file. Instances that share a folder, such as the old and
//! the new one of a restart, take the next free name, and an instance that starts takes over what
//! the dead have left.

use std::collections::HashSet;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;

use super::fleet::Outgoing;
use super::named::Purge;

/// Instances that may share one folder.
const MOST: usize = 64;

/// Lines after which the file is written anew, where some of them are not pending any more.
const MOST_LINES: usize = 8192;

/// A purge as a line of the file.
#[derive(Serialize, Deserialize)]
struct Line {
    token: u64,
    mode: String,
    /// Unix milliseconds.
    at: u64,
    kind: String,
    /// Base64.
    value: String,
    reach: String,
    /// Base64.
    of: String,
}

impl Line {
    fn of(purge: &Outgoing) -> Self {
        let (kind, value, reach, of) = purge.purge.words();
        Self {
            token: purge.token,
            mode: purge.mode.as_str().to_owned(),
            at: purge.at.as_millis(),
            kind: kind.to_owned(),
            value: STANDARD.encode(value),
            reach: reach.to_owned(),
            of: STANDARD.encode(of),
        }
    }

    fn purge(self) -> Option<Outgoing> {
        let (value, of) = (STANDARD.decode(self.value), STANDARD.decode(self.of));
        Some(Outgoing {
            token: self.token,
            purge: Purge::of_words(&self.kind, &value.ok()?, &self.reach, &of.ok()?)?,
            mode: self.mode.parse().ok()?,
            at: Timestamp::from_millis(self.at),
        })
    }

    fn read(text: &str) -> Option<Outgoing> {
        serde_json::from_str::<Self>(text).ok()?.purge()
    }
}

/// What was left in a journal by those before.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Left {
    /// In the order in which they were made.
    pub purges: Vec<Outgoing>,
    /// Lines that are none: the last one, where the machine stopped while it was written.
    pub unreadable: usize,
}

/// The file of this process.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    file: File,
    /// Tokens of what stands in it.
    tokens: HashSet<u64>,
    /// A line was begun and could be neither ended nor taken back.
    is_torn: bool,
}

impl Journal {
    /// Opens `path`, or where another instance keeps that, `path` with a number; with what stands
    /// there and in those that nobody keeps any more.
    pub fn open(path: &Path) -> io::Result<(Self, Left)> {
        let (mut own, mut left) = (None, Left::default());
        let mut others = Vec::new();
        for number in 0..MOST {
            let name = numbered(path, number);
            if own.is_some() && !name.exists() {
                continue;
            }
            let mut options = OpenOptions::new();
            options.read(true).write(true);
            let mut file = options.create(own.is_none()).truncate(false).open(&name)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(error),
            }
            let mut text = Vec::new();
            file.read_to_end(&mut text)?;
            for line in text.split_inclusive(|byte| *byte == b'\n') {
                let line = std::str::from_utf8(line).ok();
                match line.and_then(Line::read) {
                    Some(purge) => left.purges.push(purge),
                    None => left.unreadable += 1,
                }
            }
            match own {
                None => own = Some((name, file)),
                Some(_) => others.push((name, file)),
            }
        }
        let (path, file) = own.ok_or_else(|| {
            io::Error::other(format!("{MOST} instances keep their purges there already"))
        })?;
        let tokens = HashSet::new();
        let journal = Self {
            path,
            kept: Mutex::new(Kept {
                file,
                tokens,
                is_torn: false,
            }),
        };
        if left.purges.is_empty() && left.unreadable == 0 {
            return Ok((journal, left));
        }
        // What the dead have left is in the own file before theirs are gone.
        journal.keep(&[])?;
        journal.keep(&left.purges)?;
        for (name, _locked) in others {
            std::fs::remove_file(name)?;
        }
        Ok((journal, left))
    }

    /// Where it stands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether nothing stands in it.
    pub fn is_empty(&self) -> bool {
        // What is being written is something.
        let kept = self.kept.try_lock();
        kept.is_some_and(|kept| kept.tokens.is_empty())
    }

    /// Keeps these purges, and sooner or later no other: they are on the disk when this returns.
    pub fn keep(&self, purges: &[Outgoing]) -> io::Result<()> {
        let mut kept = self.kept.lock();
        if purges.is_empty() && kept.tokens.is_empty() && kept.file.metadata()?.len() == 0 {
            return Ok(());
        }
        let new: Vec<&Outgoing> = purges
            .iter()
            .filter(|purge| !kept.tokens.contains(&purge.token))
            .collect();
        let is_long = kept.tokens.len() + new.len() > MOST_LINES;
        if (is_long || kept.is_torn) && !purges.is_empty() {
            return self.rewrite(&mut kept, purges);
        }
        if purges.is_empty() {
            kept.file.set_len(0)?;
            kept.file.sync_data()?;
            (kept.tokens, kept.is_torn) = (HashSet::new(), false);
            return Ok(());
        }
        if new.is_empty() {
            return Ok(());
        }
        let length = kept.file.seek(SeekFrom::End(0))?;
        let written = kept.file.write_all(&lines(new.iter().copied()));
        if let Err(error) = written.and_then(|()| kept.file.sync_data()) {
            // What comes next would be glued to what was begun.
            kept.is_torn = kept.file.set_len(length).is_err();
            return Err(error);
        }
        kept.tokens.extend(new.iter().map(|purge| purge.token));
        Ok(())
    }

    /// Puts another file in the place of this one, at once.
    fn rewrite(&self, kept: &mut Kept, purges: &[Outgoing]) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true);
        let mut file = options.open(&new)?;
        file.lock()?;
        file.write_all(&lines(purges.iter()))?;
        file.sync_data()?;
        std::fs::rename(&new, &self.path)?;
        (kept.file, kept.is_torn) = (file, false);
        kept.tokens = purges.iter().map(|purge| purge.token).collect();
        Ok(())
    }
}

fn numbered(path: &Path, number: usize) -> PathBuf {
    match number {
        0 => path.to_owned(),
        _ => {
            let mut name = path.as_os_str().to_owned();
            name.push(format!(".{number}"));
            name.into()
        }
    }
}

fn lines<'a>(purges: impl Iterator<Item = &'a Outgoing>) -> Vec<u8> {
    let mut text = Vec::new();
    for purge in purges {
        text.extend(serde_json::to_vec(&Line::of(purge)).unwrap_or_default());
        text.push(b'\n');
    }
    text
}

/// Bytes of one part, as another instance takes them at once.
const PART: usize = 48 << 10;

/// Purges as they are told to another instance: JSON arrays, each no longer than an order may be.
pub fn in_parts(purges: &[Outgoing]) -> Vec<String> {
    let mut parts = Vec::new();
    let mut part = String::new();
    for purge in purges {
        let line = serde_json::to_string(&Line::of(purge)).unwrap_or_default();
        if !part.is_empty() && part.len() + line.len() > PART {
            parts.push(format!("[{part}]"));
            part.clear();
        }
        if !part.is_empty() {
            part.push(',');
        }
        part.push_str(&line);
    }
    if !part.is_empty() {
        parts.push(format!("[{part}]"));
    }
    parts
}

/// What a part says; `None` where it is none.
pub fn read_part(part: &[u8]) -> Option<Vec<Outgoing>> {
    let lines: Vec<Line> = serde_json::from_slice(part).ok()?;
    lines.into_iter().map(Line::purge).collect()
}

#[cfg(test)]
mod tests {
    use super::super::named::{Reach, Target};
    use super::*;
    use crate::policy::Mode;

    fn purge(token: u64, target: Target) -> Outgoing {
        Outgoing {
            token,
            purge: Purge {
                target,
                reach: Reach::Origin(Box::from(&b"http\0h\xff"[..])),
            },
            mode: Mode::Hard,
            at: Timestamp::from_millis(token),
        }
    }

    fn open(path: &Path) -> (Journal, Vec<Outgoing>) {
        let (journal, left) = Journal::open(path).unwrap();
        (journal, left.purges)
    }

    #[test]
    fn what_is_kept_is_there_again_until_nothing_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("purges");
        let all = [
            purge(u64::MAX, Target::Url(Box::from(&b"/a\0?\xfe"[..]))),
            purge(2, Target::Key([0xfd; 32])),
            purge(3, Target::Group("a \"group\"\n".into())),
        ];
        let (journal, left) = open(&path);
        assert!(left.is_empty());
        journal.keep(&all[..1]).unwrap();
        // Nothing is written twice, and nothing is lost before all are told.
        journal.keep(&all[..2]).unwrap();
        journal.keep(&all[1..]).unwrap();
        drop(journal);
        let (journal, left) = open(&path);
        assert_eq!(left, all);
        drop(journal);
        let (journal, left) = open(&path);
        assert_eq!(left, all);
        journal.keep(&[]).unwrap();
        drop(journal);
        assert_eq!(open(&path).1, []);
    }

    #[test]
    fn instances_that_share_a_folder_have_files_of_their_own_and_the_dead_leave_theirs() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("purges");
        let (one, _) = open(&path);
        let (other, left) = open(&path);
        assert!(left.is_empty() && one.path() != other.path());
        one.keep(&[purge(1, Target::All)]).unwrap();
        other.keep(&[purge(2, Target::All)]).unwrap();
        drop(other);
        let (third, left) = open(&path);
        assert_eq!(left, [purge(2, Target::All)]);
        drop((one, third));
        let (fourth, left) = open(&path);
        assert_eq!(left, [purge(1, Target::All), purge(2, Target::All)]);
        assert_eq!(fourth.path(), path);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        drop(fourth);
        assert_eq!(open(&path).1.len(), 2);
    }

    #[test]
    fn a_line_that_was_cut_off_does_not_take_the_others_with_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("purges");
        let (journal, _) = open(&path);
        journal
            .keep(&[purge(1, Target::All), purge(2, Target::All)])
            .unwrap();
        drop(journal);
        let text = std::fs::read(&path).unwrap();
        for length in [text.len() - 5, text.len() / 2 + 9] {
            std::fs::write(&path, &text[..length]).unwrap();
            let (_, left) = Journal::open(&path).unwrap();
            let expected = Left {
                purges: vec![purge(1, Target::All)],
                unreadable: 1,
            };
            assert_eq!(left, expected);
            // And what comes after it is not glued to it.
            let (journal, _) = open(&path);
            let both = [purge(1, Target::All), purge(3, Target::All)];
            journal.keep(&both).unwrap();
            drop(journal);
            assert_eq!(open(&path).1.len(), 2);
        }
    }

    #[test]
    fn the_file_does_not_grow_without_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("purges");
        let (journal, _) = open(&path);
        let pending = purge(u64::MAX, Target::All);
        for round in 0..10 {
            let batch = (0..2000).map(|number| purge(1 + round * 2000 + number, Target::All));
            let mut all = vec![pending.clone()];
            all.extend(batch);
            journal.keep(&all).unwrap();
        }
        drop(journal);
        let (_, left) = open(&path);
        assert!(left.len() <= MOST_LINES && left.contains(&pending));
    }

    #[test]
    fn what_is_handed_over_arrives_whole_and_in_parts_that_are_taken() {
        let name = |number: u64| Target::Group(format!("{number}{}", "x".repeat(400)).into());
        let all: Vec<Outgoing> = (1..300).map(|number| purge(number, name(number))).collect();
        let parts = in_parts(&all);
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() < 64 << 10));
        let read: Vec<Outgoing> = parts
            .iter()
            .flat_map(|part| read_part(part.as_bytes()).unwrap())
            .collect();
        assert_eq!(read, all);
        assert!(in_parts(&[]).is_empty());
        for broken in ["", "{}", "[{}]", "[1]", "[{\"token\":1}]"] {
            assert_eq!(read_part(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn fuzz_journals() {
        crate::fuzz::run(include_str!("../../../tests/fuzz/journals.txt"), |input| {
            if let Ok(text) = std::str::from_utf8(input)
                && let Some(purge) = Line::read(text)
            {
                let again = lines(std::iter::once(&purge));
                let again = std::str::from_utf8(&again).unwrap();
                assert_eq!(Line::read(again), Some(purge));
            }
        });
    }
}
