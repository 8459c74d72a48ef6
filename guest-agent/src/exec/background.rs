// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The output of processes that a command left running. Without a reader of their pipes, their next write would kill
//! them, so the agent goes on reading and writes to a file.
//!
//! The size of a file is limited, and the end of the output is kept. The number of commands that are followed is
//! limited as well; beyond it, the pipes of the oldest are closed. All of them together write at a limited rate, so
//! that a process that floods its output delays only itself and its like.

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    task::{AbortHandle, spawn_blocking},
    time::sleep,
};
use waggle_protocol::request::User;

use super::output_pipe::OutputPipe;
use crate::{
    mutex::lock,
    temporary::{Name, TemporaryFile, TemporaryFolder},
};

/// Maximum number of ended commands whose processes are followed.
const FOLLOWED_MAX: usize = 64;

/// Maximum number of files of commands whose last process has closed its output.
const ENDED_FILES_MAX: usize = 16;

/// Maximum size of a file in bytes.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// Size of the end of the output that is kept when a file reaches its maximum, in bytes.
const KEPT_BYTES: usize = 512 * 1024;

/// The first line of a file whose beginning was removed.
const REMOVED: &[u8] = b"[the beginning of the output was removed]\n";

/// Maximum bytes of one write.
const WRITE_BYTES_MAX: usize = 16 * 1024;

/// Time between two writes of all followed commands together, so at most 8 MiB are written per second.
const WRITE_INTERVAL: Duration = Duration::from_millis(2);

/// Follows the processes that commands left running.
#[derive(Debug)]
pub(super) struct BackgroundOutputs {
    temporary: Arc<TemporaryFolder>,
    followers: Mutex<VecDeque<AbortHandle>>,
    /// The files of commands whose output has ended, the oldest first.
    ended: Arc<Mutex<VecDeque<Name>>>,
    /// Held by the follower that writes.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl BackgroundOutputs {
    pub(super) fn new(temporary: Arc<TemporaryFolder>) -> Self {
        Self { temporary, followers: Mutex::default(), ended: Arc::default(), turn: Arc::default() }
    }

    /// Follows the processes that have these pipes open. Returns the file's path in the guest; `None` if no file could
    /// be created, for example because the disk is full. The processes then continue as well, but their output is lost.
    pub(super) async fn follow(&self, pipes: [Option<OutputPipe>; 2]) -> Option<String> {
        // File calls run as the sandbox user, who must be able to read the output of root's commands as well.
        let file = self.temporary.create("log", User::Sandbox).await.ok();
        let path = file.as_ref().map(TemporaryFile::guest_path);
        let (ended, turn) = (Arc::clone(&self.ended), Arc::clone(&self.turn));
        let following = tokio::spawn(async move {
            let file = copy(pipes, file, &turn).await;
            let oldest = file.and_then(|file| {
                let mut ended = lock(&ended);
                ended.push_back(file.into_name());
                if ended.len() > ENDED_FILES_MAX { ended.pop_front() } else { None }
            });
            if let Some(oldest) = oldest {
                oldest.remove().await;
            }
        });
        let mut followers = lock(&self.followers);
        followers.retain(|follower| !follower.is_finished());
        followers.push_back(following.abort_handle());
        if followers.len() > FOLLOWED_MAX
            && let Some(oldest) = followers.pop_front()
        {
            oldest.abort();
        }
        path
    }
}

impl Drop for BackgroundOutputs {
    fn drop(&mut self) {
        lock(&self.followers).iter().for_each(AbortHandle::abort);
    }
}

/// Copies the output to the file until both pipes have ended. Returns the file.
async fn copy(
    [mut stdout, mut stderr]: [Option<OutputPipe>; 2],
    mut file: Option<TemporaryFile>,
    turn: &tokio::sync::Mutex<()>,
) -> Option<TemporaryFile> {
    let (mut stdout_bytes, mut stderr_bytes) = (vec![0; WRITE_BYTES_MAX], vec![0; WRITE_BYTES_MAX]);
    while stdout.is_some() || stderr.is_some() {
        let (source, buffer, read) = tokio::select! {
            read = read(stdout.as_ref(), &mut stdout_bytes) => (&mut stdout, &stdout_bytes, read),
            read = read(stderr.as_ref(), &mut stderr_bytes) => (&mut stderr, &stderr_bytes, read),
        };
        let bytes = buffer.get(..read).unwrap_or_default();
        if bytes.is_empty() {
            *source = None;
            continue;
        }
        let _turn = turn.lock().await;
        file = append_to(file, bytes.to_vec()).await;
        sleep(WRITE_INTERVAL).await;
    }
    file
}

/// Reads from the pipe. Stays pending without a pipe.
async fn read(pipe: Option<&OutputPipe>, buffer: &mut [u8]) -> usize {
    match pipe {
        Some(pipe) => pipe.read(buffer).await,
        None => std::future::pending().await,
    }
}

/// Appends to the file in another thread, because the disk may be slow. Returns the file.
async fn append_to(file: Option<TemporaryFile>, bytes: Vec<u8>) -> Option<TemporaryFile> {
    let file = file?;
    let written = spawn_blocking(move || {
        // After an error, such as a full disk, the next write is tried all the same.
        let _appended = append(file.file(), &bytes);
        file
    });
    written.await.ok()
}

/// Appends to the file. If the file is full, removes the beginning first. The user may change the file meanwhile, so
/// its current size counts.
fn append(file: &File, bytes: &[u8]) -> io::Result<()> {
    let size = file.metadata()?.len();
    if size.saturating_add(bytes.len() as u64) <= FILE_BYTES_MAX {
        return file.write_all_at(bytes, size);
    }
    let mut kept = vec![0; KEPT_BYTES];
    let read = file.read_at(&mut kept, size.saturating_sub(KEPT_BYTES as u64))?;
    kept.truncate(read);
    // The kept part begins with a whole line.
    let line = kept.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
    let text = [REMOVED, kept.get(line..).unwrap_or_default(), bytes].concat();
    file.set_len(0)?;
    file.write_all_at(&text, 0)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn full_file_keeps_whole_lines_of_the_end() {
        let mut file = tempfile::tempfile().unwrap();
        for number in 0..100_000 {
            append(&file, format!("line {number}\n").as_bytes()).unwrap();
            assert!(file.metadata().unwrap().len() <= FILE_BYTES_MAX);
        }
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("[the beginning of the output was removed]"));
        assert!(lines.next().unwrap().starts_with("line "));
        assert_eq!(lines.last(), Some("line 99999"));
        assert!(text.len() > KEPT_BYTES / 2);
    }

    #[test]
    fn file_that_the_user_shortened_grows_from_its_new_end() {
        let mut file = tempfile::tempfile().unwrap();
        append(&file, b"first").unwrap();
        file.set_len(0).unwrap();
        append(&file, b"second").unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "second");
    }
}
