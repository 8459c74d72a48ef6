// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Reads a tar archive as a stream of entries: ustar, GNU long names, pax.
//!
//! Only the header decoding of the crate `tar` is used. The crate's archive reader reads extension headers of any
//! length into memory, and splits pax records at line breaks, which corrupts binary attributes. Where tar formats
//! differ, this module follows Go's archive/tar, which the image tools use.

use std::io::{self, Read};

use tar::{EntryType, Header};

use super::{
    limits::TAR_EXTENSION_BYTES_MAX,
    pax::{self, PaxFault, PaxRecords},
    sparse::{Span, SparseCursor, SparseMap},
};

const BLOCK_BYTES: usize = 512;
const BLOCK_BYTES_U64: u64 = 512;

/// An archive is damaged or has unsupported entries.
#[derive(Debug, thiserror::Error)]
pub enum TarFault {
    /// The underlying reader failed: decompression, a limit, or the disk.
    #[error("failed to read the archive")]
    Read { source: io::Error },
    #[error("the archive ends in the middle of an entry")]
    Truncated,
    #[error("invalid header after {entries} entries")]
    Header { entries: u64, source: io::Error },
    #[error("invalid extended header")]
    Pax { source: PaxFault },
    #[error("an extended header has {bytes} bytes; at most {TAR_EXTENSION_BYTES_MAX} are allowed")]
    ExtensionTooLong { bytes: u64 },
    #[error("the entry {name:?} has the unknown type {kind:?}")]
    Kind { name: String, kind: char },
    #[error("the entry {name:?} is a sparse file with an invalid map")]
    Sparse { name: String },
    #[error("the entry {name:?} has the {what} {value}, which is too large")]
    Number { name: String, what: &'static str, value: u64 },
}

/// An entry whose name and link target have not been checked yet.
#[derive(Debug)]
pub(super) struct TarEntry {
    pub(super) path: Vec<u8>,
    pub(super) kind: TarKind,
    /// Bytes of a file's holes, which the archive does not contain.
    pub(super) hole_bytes: u64,
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime_s: i64,
    pub(super) mtime_ns: u32,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[cfg(test)]
impl TarEntry {
    pub(super) fn plain(path: &str, kind: TarKind) -> Self {
        let (path, xattrs) = (path.as_bytes().to_vec(), Vec::new());
        Self { path, kind, hole_bytes: 0, permissions: 0o755, uid: 0, gid: 0, mtime_s: 0, mtime_ns: 0, xattrs }
    }
}

#[derive(Debug, Eq, PartialEq)]
pub(super) enum TarKind {
    File { bytes: u64 },
    Folder,
    Symlink { target: Vec<u8> },
    HardLink { target: Vec<u8> },
    CharDevice { major: u32, minor: u32 },
    BlockDevice { major: u32, minor: u32 },
    Fifo,
}

/// Extension headers that describe the next entry.
#[derive(Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: PaxRecords,
}

/// A function that skips content.
type Skip<R> = fn(&mut R, u64) -> io::Result<()>;

pub(super) struct TarStream<R> {
    reader: R,
    skip: Skip<R>,
    content_left: u64,
    padding: u64,
    /// The position in the current file, if it is sparse.
    sparse: Option<SparseCursor>,
    entries: u64,
}

impl<R: Read> TarStream<R> {
    /// Creates a stream that skips content by reading it.
    pub(super) fn new(reader: R) -> Self {
        Self::with_skip(reader, |reader, bytes| {
            let skipped = io::copy(&mut reader.by_ref().take(bytes), &mut io::sink())?;
            if skipped == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
        })
    }

    /// Creates a stream that skips content with `skip`, for readers that can seek.
    pub(super) fn with_skip(reader: R, skip: Skip<R>) -> Self {
        Self { reader, skip, content_left: 0, padding: 0, sparse: None, entries: 0 }
    }

    pub(super) fn reader(&mut self) -> &mut R {
        &mut self.reader
    }

    /// The content of the entry that `next_entry` returned last.
    pub(super) fn content(&mut self) -> Content<'_, R> {
        Content { stream: self }
    }

    /// Skips the rest of the current entry's content, and returns the next entry.
    pub(super) fn next_entry(&mut self) -> Result<Option<TarEntry>, TarFault> {
        let mut extensions = Extensions::default();
        loop {
            let Some(header) = self.next_header()? else { return Ok(None) };
            let kind = header.entry_type();
            let bytes = self.number(header.entry_size())?;
            if kind.is_gnu_longname() {
                extensions.long_path = Some(until_nul(self.read_extension(bytes)?));
            } else if kind.is_gnu_longlink() {
                extensions.long_link = Some(until_nul(self.read_extension(bytes)?));
            } else if kind.is_pax_local_extensions() {
                let records = self.read_extension(bytes)?;
                extensions.pax = pax::parse(&records).map_err(|source| TarFault::Pax { source })?;
            } else if kind.is_pax_global_extensions() {
                // Global headers usually contain only comments. The image tools ignore global headers too.
                self.read_extension(bytes)?;
            } else {
                let entry = self.entry(&header, bytes, extensions)?;
                self.entries = self.entries.saturating_add(1);
                return Ok(Some(entry));
            }
        }
    }

    fn entry(&mut self, header: &Header, bytes: u64, extensions: Extensions) -> Result<TarEntry, TarFault> {
        let Extensions { long_path, long_link, mut pax } = extensions;
        let sparse_name = pax.sparse.as_mut().and_then(|sparse| sparse.name.take());
        let path = sparse_name.or(pax.path.take()).or(long_path).unwrap_or_else(|| header.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&path).into_owned();
        let link = pax.link_path.take().or(long_link);
        let mut kind = self.kind(header, &name, link, pax.bytes.unwrap_or(bytes))?;
        let mut hole_bytes = 0;
        // Entries of other kinds have no content, even if the header has a size.
        if let TarKind::File { bytes } = &mut kind
            && let Some(map) = self.expect_file(header, &pax, *bytes, &name)?
        {
            (*bytes, hole_bytes) = (map.bytes, map.hole_bytes);
            self.sparse = Some(SparseCursor::new(map));
        }
        let narrow =
            |what, value: u64| u32::try_from(value).map_err(|_| TarFault::Number { name: name.clone(), what, value });
        let (mtime_s, mtime_ns) = match pax.mtime {
            Some(mtime) => mtime,
            None => (self.number(header.mtime())?.cast_signed(), 0),
        };
        // On Linux a symbolic link's mode is always 0777.
        let is_symlink = matches!(kind, TarKind::Symlink { .. });
        let permissions = if is_symlink { 0o777 } else { self.number(header.mode())? & 0o7777 };
        Ok(TarEntry {
            kind,
            hole_bytes,
            permissions: u16::try_from(permissions).unwrap_or(0),
            uid: narrow("owner", pax.uid.map_or_else(|| self.number(header.uid()), Ok)?)?,
            gid: narrow("group", pax.gid.map_or_else(|| self.number(header.gid()), Ok)?)?,
            mtime_s,
            mtime_ns,
            xattrs: pax.xattrs,
            path,
        })
    }

    /// Returns an entry's kind. `bytes` is a file's size in the archive, `link` a link's target in extension headers.
    fn kind(&self, header: &Header, name: &str, link: Option<Vec<u8>>, bytes: u64) -> Result<TarKind, TarFault> {
        let link = || link.or_else(|| header.link_name_bytes().map(Into::into)).unwrap_or_default();
        let device = || -> Result<(u32, u32), TarFault> {
            let major = self.number(header.device_major())?.unwrap_or(0);
            let minor = self.number(header.device_minor())?.unwrap_or(0);
            Ok((major, minor))
        };
        Ok(match header.entry_type() {
            // Before POSIX, a folder was stored as a file with a slash at the end of its name.
            EntryType::Regular if header.as_bytes().get(156) == Some(&0) && name.ends_with('/') => TarKind::Folder,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => TarKind::File { bytes },
            EntryType::Directory => TarKind::Folder,
            EntryType::Symlink => TarKind::Symlink { target: link() },
            EntryType::Link => TarKind::HardLink { target: link() },
            EntryType::Char => device().map(|(major, minor)| TarKind::CharDevice { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| TarKind::BlockDevice { major, minor })?,
            EntryType::Fifo => TarKind::Fifo,
            // `next_entry` has handled the four extension types.
            other @ (EntryType::GNULongName
            | EntryType::GNULongLink
            | EntryType::XHeader
            | EntryType::XGlobalHeader
            | _) => return Err(TarFault::Kind { name: name.to_owned(), kind: char::from(other.as_byte()) }),
        })
    }

    /// Prepares to read a file's content, of which the archive contains `stored` bytes. Returns the map if the file is
    /// sparse.
    fn expect_file(
        &mut self,
        header: &Header,
        pax: &PaxRecords,
        stored: u64,
        name: &str,
    ) -> Result<Option<SparseMap>, TarFault> {
        let map = if header.entry_type().is_gnu_sparse() {
            let reader = &mut self.reader;
            let map = SparseMap::of_header(header, stored, |block| reader.read_exact(block)).map_err(read_fault)?;
            self.expect_content(stored);
            map
        } else {
            self.expect_content(stored);
            let Some(sparse) = &pax.sparse else { return Ok(None) };
            sparse.map(self.content(), stored).map_err(read_fault)?
        };
        map.map(Some).ok_or_else(|| TarFault::Sparse { name: name.to_owned() })
    }

    fn next_header(&mut self) -> Result<Option<Header>, TarFault> {
        let left = self.content_left.saturating_add(self.padding);
        (self.content_left, self.padding, self.sparse) = (0, 0, None);
        if left > 0 {
            (self.skip)(&mut self.reader, left).map_err(read_fault)?;
        }
        let mut header = Header::new_old();
        if !read_block(&mut self.reader, header.as_mut_bytes())? || header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum = (header.as_bytes().iter().enumerate())
            // The checksum's own field counts as eight spaces.
            .map(|(at, byte)| if (148..156).contains(&at) { u32::from(b' ') } else { u32::from(*byte) })
            .sum::<u32>();
        if self.number(header.cksum())? != sum {
            return self.number(Err(io::Error::new(io::ErrorKind::InvalidData, "invalid checksum")));
        }
        Ok(Some(header))
    }

    fn read_extension(&mut self, bytes: u64) -> Result<Vec<u8>, TarFault> {
        if bytes > TAR_EXTENSION_BYTES_MAX {
            return Err(TarFault::ExtensionTooLong { bytes });
        }
        self.expect_content(bytes);
        let mut content = Vec::new();
        self.content().read_to_end(&mut content).map_err(read_fault)?;
        Ok(content)
    }

    fn expect_content(&mut self, bytes: u64) {
        self.content_left = bytes;
        self.padding = (BLOCK_BYTES_U64 - bytes % BLOCK_BYTES_U64) % BLOCK_BYTES_U64;
    }

    fn number<T>(&self, decoded: io::Result<T>) -> Result<T, TarFault> {
        decoded.map_err(|source| TarFault::Header { entries: self.entries, source })
    }
}

/// A reader of an entry's content, with holes as zeros. Fails if the archive ends within the content.
pub(super) struct Content<'a, R> {
    stream: &'a mut TarStream<R>,
}

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let TarStream { reader, content_left, sparse, .. } = &mut *self.stream;
        let (is_stored, left) = match sparse.as_mut().map(SparseCursor::next) {
            None => (true, *content_left),
            Some(Span::Stored(bytes)) => (true, bytes),
            Some(Span::Zeros(bytes)) => (false, bytes),
        };
        let wanted = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let Some(buffer) = buffer.get_mut(..wanted).filter(|buffer| !buffer.is_empty()) else { return Ok(0) };
        let mut read = buffer.len();
        if is_stored {
            read = reader.read(buffer)?;
            if read == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            *content_left = content_left.saturating_sub(read as u64);
        } else {
            buffer.fill(0);
        }
        if let Some(sparse) = sparse {
            sparse.advance(read as u64);
        }
        Ok(read)
    }
}

pub(super) fn read_fault(source: io::Error) -> TarFault {
    if source.kind() == io::ErrorKind::UnexpectedEof { TarFault::Truncated } else { TarFault::Read { source } }
}

/// Reads a block. Returns false at the end of the stream; a partial block is an error.
fn read_block(reader: &mut impl Read, block: &mut [u8; BLOCK_BYTES]) -> Result<bool, TarFault> {
    let mut filled = 0;
    while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match reader.read(rest) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(TarFault::Truncated),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read_fault(error)),
        }
    }
    Ok(true)
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}
