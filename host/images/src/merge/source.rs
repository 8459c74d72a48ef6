// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Opens a layout's files, in a folder or in a tar file. A tar file is indexed once, and its files are read in place.
//! The cache stores blobs in the same structure as a layout.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::{self, Read as _, Seek as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::libc::O_NONBLOCK;
use oci_spec::image::Descriptor;

use super::{
    blob::{BlobFault, BlobReader},
    file_range::FileRange,
    layout_fault::LayoutFault,
    limits::{ARCHIVE_MEMBERS_MAX, DOCUMENT_BYTES_MAX},
    tar_stream::{TarFault, TarKind, TarStream, read_fault},
};

/// The files of a layout.
#[derive(Debug)]
pub(super) enum Source {
    Folder(PathBuf),
    Archive { path: PathBuf, file: Arc<File>, members: HashMap<Vec<u8>, Member> },
}

/// The range of a file within the tar file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Member {
    offset: u64,
    bytes: u64,
}

impl Source {
    pub(super) fn open_folder(path: &Path) -> Result<Self, LayoutFault> {
        let open_fault = |source| LayoutFault::Open { path: path.display().to_string(), source };
        let metadata = path.metadata().map_err(open_fault)?;
        if !metadata.is_dir() {
            return Err(open_fault(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self::Folder(path.to_owned()))
    }

    pub(super) fn open_archive(path: &Path) -> Result<Self, LayoutFault> {
        let shown = || path.display().to_string();
        let file = open_file(path).map_err(|source| LayoutFault::Open { path: shown(), source })?;
        let members = match index(&file) {
            Ok(Some(members)) => members,
            Ok(None) => return Err(LayoutFault::ArchiveMembers { path: shown(), max: ARCHIVE_MEMBERS_MAX }),
            Err(source) => return Err(LayoutFault::Archive { path: shown(), source }),
        };
        Ok(Self::Archive { path: path.to_owned(), file: Arc::new(file), members })
    }

    /// Reads `index.json` or `oci-layout`.
    pub(super) fn read_document(&self, name: &'static str) -> Result<Vec<u8>, LayoutFault> {
        let open_fault = |source| LayoutFault::Open { path: format!("{}/{name}", self.path().display()), source };
        let Some(range) = self.open(name).map_err(open_fault)? else {
            return Err(LayoutFault::NotALayout { path: self.path().display().to_string(), missing: name });
        };
        let bytes = range.bytes_left();
        if bytes > DOCUMENT_BYTES_MAX {
            return Err(LayoutFault::DocumentTooLarge { document: name.to_owned(), bytes });
        }
        let mut content = Vec::new();
        range.take(DOCUMENT_BYTES_MAX).read_to_end(&mut content).map_err(open_fault)?;
        Ok(content)
    }

    pub(super) fn open_blob(&self, descriptor: &Descriptor) -> Result<BlobReader, LayoutFault> {
        // The parser of digests rejects slashes and dots.
        let digest = descriptor.digest();
        let fault = |source| LayoutFault::Blob { document: format!("the blob {digest}"), source };
        let name = format!("blobs/{}/{}", digest.algorithm(), digest.digest());
        let range = self
            .open(&name)
            .map_err(|source| fault(BlobFault::Read { digest: digest.to_string(), source }))?
            .ok_or_else(|| fault(BlobFault::Missing { digest: digest.to_string() }))?;
        BlobReader::new(range, descriptor).map_err(fault)
    }

    fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::Archive { path, .. } => path,
        }
    }

    fn open(&self, name: &str) -> io::Result<Option<FileRange>> {
        match self {
            Self::Folder(folder) => match open_file(&folder.join(name)) {
                Ok(file) => {
                    let bytes = file.metadata()?.len();
                    Ok(Some(FileRange::new(Arc::new(file), 0, bytes)))
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            },
            Self::Archive { file, members, .. } => Ok(members
                .get(name.as_bytes())
                .map(|member| FileRange::new(Arc::clone(file), member.offset, member.bytes))),
        }
    }
}

/// Opens a regular file. Rejects a pipe without blocking.
fn open_file(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

/// Indexes the files in a tar file. Returns `None` if the tar file has more than `ARCHIVE_MEMBERS_MAX` files.
fn index(file: &File) -> Result<Option<HashMap<Vec<u8>, Member>>, TarFault> {
    let mut archive = TarStream::with_skip(file, |file, bytes| {
        file.seek_relative(i64::try_from(bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?)
    });
    let file_bytes = file.metadata().map_err(read_fault)?.len();
    let mut members = HashMap::new();
    while let Some(entry) = archive.next_entry()? {
        let TarKind::File { bytes } = entry.kind else { continue };
        // A sparse file cannot be read in place. Tools do not write sparse files into layouts.
        if entry.hole_bytes > 0 {
            continue;
        }
        let offset = archive.reader().stream_position().map_err(read_fault)?;
        if offset.checked_add(bytes).is_none_or(|end| end > file_bytes) {
            return Err(TarFault::Truncated);
        }
        let name = entry.path.strip_prefix(b"./").unwrap_or(&entry.path).to_vec();
        members.insert(name, Member { offset, bytes });
        if members.len() > ARCHIVE_MEMBERS_MAX {
            return Ok(None);
        }
    }
    Ok(Some(members))
}
