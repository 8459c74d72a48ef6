// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Layers to one EROFS image.
//!
//! ```text
//! blob ─ sha256 ─ gunzip/unzstd ─ limits ─ tar ─┬─ names, owners, links ──▶ tree ──┐
//!                                               └─ contents ──▶ spool file ────────┴─▶ EROFS
//! ```
//!
//! Contents wait in a nameless file, because an upper layer may take away what a lower one has brought; it needs as
//! much disk as the layers have bytes, for as long as the merge takes.

use std::{
    fs::File,
    io::{self, BufReader, BufWriter, Read, Write as _},
    path::Path,
    sync::Arc,
};

use flate2::bufread::MultiGzDecoder;

use super::{
    Watch,
    blob::{BlobFault, BlobReader},
    erofs::{self, ErofsFault, Measure},
    layout::{Compression, Layer, LayoutFault, Source},
    limits::{EXPANDED_BYTES_MAX, RATIO_FREE_BYTES, RATIO_MAX},
    tar_stream::{TarFault, TarKind, TarStream, read_fault},
    tree::{EntryFault, Extent, Tree},
};

/// Blobs are read, and the spool is written, in pieces of this size.
const STREAM_BUFFER_BYTES: usize = 256 * 1024;

/// log2 of the window that a zstd layer may ask for: 128 MiB, what `zstd --long` uses by default.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Layers could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeFault {
    /// A layer's blob is not there.
    #[error("failed to open the layer {digest}")]
    Open {
        /// The layer's digest.
        digest: String,
        /// Why.
        source: LayoutFault,
    },
    /// A layer's blob is not what its digest names.
    #[error("failed to verify the layer {digest}")]
    Blob {
        /// The layer's digest.
        digest: String,
        /// What is wrong with it.
        source: BlobFault,
    },
    /// A layer's content is damaged or malicious, although its digest is right.
    #[error("failed to read the layer {digest}")]
    Layer {
        /// The layer's digest.
        digest: String,
        /// What is wrong with it.
        source: LayerFault,
    },
    /// The spool file said no.
    #[error("failed to spool the layers' files in {folder}")]
    Spool {
        /// The folder that it is in.
        folder: String,
        /// Why.
        source: io::Error,
    },
    /// The result could not be written.
    #[error("failed to write the image")]
    Erofs {
        /// Why.
        source: ErofsFault,
    },
    /// Nobody waits for the result any more.
    #[error("the merge was called off")]
    Stopped,
}

/// A layer's content cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerFault {
    /// Its archive is damaged.
    #[error("its archive is damaged or not supported")]
    Tar {
        /// Where.
        source: TarFault,
    },
    /// An entry cannot be used.
    #[error("one of its entries cannot be used")]
    Entry {
        /// Which, and why.
        source: EntryFault,
    },
    /// It grows too large.
    #[error("it expands to more than {RATIO_MAX} times its size")]
    Ratio,
    /// The image grows too large.
    #[error("with it the image's layers expand to more than {EXPANDED_BYTES_MAX} bytes")]
    Expanded,
    /// The spool file said no.
    #[error("its files cannot be spooled")]
    Spool {
        /// Why.
        source: io::Error,
    },
}

/// Merges `layers`, lowest first, into `out`.
pub(super) fn merge(
    source: &Source,
    layers: &[Layer],
    scratch: &Path,
    out: &File,
    uuid: [u8; 16],
    watch: &Watch,
) -> Result<Measure, MergeFault> {
    let spool_fault = |source| MergeFault::Spool { folder: scratch.display().to_string(), source };
    let spool = tempfile::tempfile_in(scratch).map_err(spool_fault)?;
    let mut merge = Merge {
        tree: Tree::new(),
        spool: BufWriter::with_capacity(STREAM_BUFFER_BYTES, spool),
        spooled_bytes: 0,
        expanded_bytes: 0,
    };
    for (at, layer) in layers.iter().enumerate() {
        merge.add(source, at, layer, watch)?;
    }
    let spool = merge.spool.into_inner().map_err(|error| spool_fault(error.into_error()))?;
    erofs::write(&merge.tree, &Arc::new(spool), out, uuid, watch)
        .map_err(|source| if watch.is_stopped() { MergeFault::Stopped } else { MergeFault::Erofs { source } })
}

struct Merge {
    tree: Tree,
    spool: BufWriter<File>,
    spooled_bytes: u64,
    expanded_bytes: u64,
}

impl Merge {
    fn add(&mut self, source: &Source, at: usize, layer: &Layer, watch: &Watch) -> Result<(), MergeFault> {
        let digest = || layer.descriptor.digest().to_string();
        let mut blob =
            source.open_blob(&layer.descriptor).map_err(|source| MergeFault::Open { digest: digest(), source })?;
        let read = self.read(at, layer, &mut blob, watch);
        if watch.is_stopped() {
            return Err(MergeFault::Stopped);
        }
        // A blob that is not what it should be explains whatever was wrong with its content.
        let verified = blob.finish();
        match (read, verified) {
            (_, Err(source)) => Err(MergeFault::Blob { digest: digest(), source }),
            (Err(source), Ok(())) => Err(MergeFault::Layer { digest: digest(), source }),
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    fn read(&mut self, at: usize, layer: &Layer, blob: &mut BlobReader, watch: &Watch) -> Result<(), LayerFault> {
        let decoded = decode(Counted { blob, watch }, layer.compression)
            .map_err(|source| LayerFault::Tar { source: TarFault::Read { source } })?;
        let bytes_max = layer.descriptor.size().saturating_mul(RATIO_MAX).max(RATIO_FREE_BYTES);
        let image_bytes_max = EXPANDED_BYTES_MAX.saturating_sub(self.expanded_bytes);
        let mut expanded = Expanded { decoded, bytes: 0, bytes_max: bytes_max.min(image_bytes_max), watch };
        let result = self.read_entries(at, &mut expanded).and_then(|()| {
            // What follows the archive's end counts too.
            io::copy(&mut expanded, &mut io::sink())
                .map(|_| ())
                .map_err(|source| LayerFault::Tar { source: read_fault(source) })
        });
        self.expanded_bytes = self.expanded_bytes.saturating_add(expanded.bytes);
        if expanded.bytes > image_bytes_max {
            return Err(LayerFault::Expanded);
        }
        if expanded.bytes > bytes_max {
            return Err(LayerFault::Ratio);
        }
        result
    }

    fn read_entries(&mut self, at: usize, expanded: &mut Expanded<'_>) -> Result<(), LayerFault> {
        let watch = expanded.watch;
        let mut archive = TarStream::new(expanded);
        while let Some(entry) = archive.next_entry().map_err(|source| LayerFault::Tar { source })? {
            let mut extent = Extent::default();
            if let TarKind::File { bytes } = entry.kind {
                // They take no room in the archive, and as much as others in the image.
                archive
                    .reader()
                    .count(entry.hole_bytes)
                    .map_err(|source| LayerFault::Tar { source: read_fault(source) })?;
                extent = Extent { offset: self.spooled_bytes, bytes };
                self.spool_content(archive.content(), watch)?;
            }
            self.tree.apply(at, &entry, extent).map_err(|source| LayerFault::Entry { source })?;
        }
        Ok(())
    }

    fn spool_content(&mut self, mut content: impl Read, watch: &Watch) -> Result<(), LayerFault> {
        let mut buffer = [0; 16 * 1024];
        loop {
            // A hole can be long, and nothing is read for it.
            watch.check().map_err(|source| LayerFault::Tar { source: read_fault(source) })?;
            let read = match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LayerFault::Tar { source: read_fault(error) }),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            self.spool.write_all(bytes).map_err(|source| LayerFault::Spool { source })?;
            self.spooled_bytes = self.spooled_bytes.saturating_add(read as u64);
        }
    }
}

fn decode<'a>(blob: Counted<'a>, compression: Compression) -> io::Result<Box<dyn Read + 'a>> {
    let blob = BufReader::with_capacity(STREAM_BUFFER_BYTES, blob);
    Ok(match compression {
        Compression::None => Box::new(blob),
        // Tools that compress in parallel write several members.
        Compression::Gzip => Box::new(BufReader::with_capacity(STREAM_BUFFER_BYTES, MultiGzDecoder::new(blob))),
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(blob)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Box::new(BufReader::with_capacity(STREAM_BUFFER_BYTES, decoder))
        }
    })
}

/// A layer before decompression: tells whoever watches how far it has been read.
struct Counted<'a> {
    blob: &'a mut BlobReader,
    watch: &'a Watch,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A decoder reads on for as long as a blob expands to nothing, as a million empty gzip members do.
        self.watch.check()?;
        let read = self.blob.read(buffer)?;
        self.watch.add_read(read);
        Ok(read)
    }
}

/// A layer after decompression: counted, and cut off at a limit or when nobody waits any more.
struct Expanded<'a> {
    decoded: Box<dyn Read + 'a>,
    bytes: u64,
    bytes_max: u64,
    watch: &'a Watch,
}

impl Read for Expanded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.watch.check()?;
        let read = self.decoded.read(buffer)?;
        self.count(read as u64)?;
        Ok(read)
    }
}

impl Expanded<'_> {
    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max { Err(io::Error::other("it expands beyond its limit")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Seek as _;

    use flate2::{Compression as Level, write::GzEncoder};
    use oci_spec::image::{Descriptor, MediaType};
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::images::merge::file_range::FileRange;

    /// Such a blob expands to nothing, so a decoder reads all of it before it returns.
    #[test]
    fn a_blob_of_empty_members_can_be_called_off() {
        let member = GzEncoder::new(Vec::new(), Level::fast()).finish().unwrap();
        let content = member.repeat(100_000);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&content).unwrap();
        file.rewind().unwrap();
        let digest = format!("sha256:{:x}", Sha256::digest(&content));
        let size = content.len() as u64;
        let descriptor =
            Descriptor::new(MediaType::ImageLayerGzip, size, digest.parse::<oci_spec::image::Digest>().unwrap());
        let mut blob = BlobReader::new(FileRange::new(Arc::new(file), 0, size), &descriptor).unwrap();
        let watch = Watch::default();
        let mut decoded = decode(Counted { blob: &mut blob, watch: &watch }, Compression::Gzip).unwrap();
        watch.stop();
        assert_eq!(decoded.read(&mut [0; 1]).unwrap_err().to_string(), "it was called off");
        drop(decoded);
        // Its first buffer was read to look for a header.
        assert_eq!(watch.read_bytes(), STREAM_BUFFER_BYTES as u64);
        blob.finish().unwrap();
    }
}
