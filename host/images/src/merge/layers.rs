// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! Merges layers into one EROFS image.
//!
//! ```text
//! blob ─ sha256 ─ gunzip/unzstd ─ limits ─ tar ─┬─ names, owners, links ──▶ tree ──┐
//!                                               └─ contents ──▶ spool file ────────┴─▶ EROFS
//! ```
//!
//! File contents are spooled to an unnamed temporary file, because an upper layer may remove files of a lower layer.
//! During the merge, the spool file needs disk space for the contents of all layers.

use std::{
    fs::File,
    io::{self, Read},
    sync::Arc,
};

use oci_spec::image::Descriptor;

use super::{
    blob::{BlobFault, BlobReader},
    compression::{self, CompressionFault},
    control::MergeControl,
    erofs::{self, Measure},
    layout_fault::LayoutFault,
    limits::{EXPANDED_BYTES_MAX, RATIO_FREE_BYTES, RATIO_MAX},
    source::Source,
    sparse_writer::SparseWriter,
    tar_stream::{TarFault, TarKind, TarStream, read_fault},
    tree::{EntryFault, Extent, Tree},
};

/// Layers could not be merged.
#[derive(Debug, thiserror::Error)]
pub enum MergeFault {
    #[error("failed to open the layer {digest}")]
    Open { digest: String, source: LayoutFault },
    #[error("failed to verify the layer {digest}")]
    Blob { digest: String, source: BlobFault },
    /// A layer's content is damaged, malicious or not supported, although its digest matches.
    #[error("failed to read the layer {digest} (media type {media_type:?})")]
    Layer { digest: String, media_type: String, source: LayerFault },
    #[error("failed to spool the layers' files")]
    Spool { source: io::Error },
    #[error("failed to write the merged image")]
    Write { source: io::Error },
    /// The merge was cancelled by its [`MergeControl`].
    #[error("the merge was cancelled")]
    Cancelled,
}

/// A layer's content cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LayerFault {
    #[error("{source}")]
    Compression { source: CompressionFault },
    #[error("its archive is damaged or not supported")]
    Tar { source: TarFault },
    #[error("one of its entries cannot be used")]
    Entry { source: EntryFault },
    #[error("it expands to more than {RATIO_MAX} times its size")]
    Ratio,
    #[error("the image's layers expand to more than {EXPANDED_BYTES_MAX} bytes")]
    Expanded,
    #[error("failed to spool its files")]
    Spool { source: io::Error },
}

impl MergeFault {
    /// Whether the merge could not write its files, whatever the layers contain.
    pub(super) fn is_of_cache(&self) -> bool {
        match self {
            Self::Spool { .. } | Self::Write { .. } | Self::Cancelled => true,
            Self::Layer { source, .. } => matches!(source, LayerFault::Spool { .. }),
            Self::Open { .. } | Self::Blob { .. } => false,
        }
    }
}

/// Merges `layers`, lowest first, into `out`. The files' contents are collected in `spool`, an empty file.
pub(super) fn merge(
    source: &Source,
    layers: &[Descriptor],
    spool: File,
    out: &File,
    uuid: [u8; 16],
    control: &MergeControl,
) -> Result<Measure, MergeFault> {
    let mut merge = Merge { tree: Tree::new(), spool: SparseWriter::new(spool, control), expanded_bytes: 0 };
    for (at, layer) in layers.iter().enumerate() {
        merge.add(source, at, layer, control)?;
    }
    let (spool, _) = merge.spool.finish().map_err(|source| MergeFault::Spool { source })?;
    erofs::write(&merge.tree, &Arc::new(spool), out, uuid, control)
        .map_err(|source| if control.is_cancelled() { MergeFault::Cancelled } else { MergeFault::Write { source } })
}

struct Merge<'a> {
    tree: Tree,
    spool: SparseWriter<'a>,
    expanded_bytes: u64,
}

impl Merge<'_> {
    fn add(
        &mut self,
        source: &Source,
        at: usize,
        layer: &Descriptor,
        control: &MergeControl,
    ) -> Result<(), MergeFault> {
        let digest = || layer.digest().to_string();
        let mut blob = source.open_blob(layer).map_err(|source| MergeFault::Open { digest: digest(), source })?;
        let read = self.read(at, layer, &mut blob, control);
        if control.is_cancelled() {
            return Err(MergeFault::Cancelled);
        }
        // A corrupt blob explains any fault of the content, so a wrong digest is reported first.
        let verified = blob.finish();
        match (read, verified) {
            (_, Err(source)) => Err(MergeFault::Blob { digest: digest(), source }),
            (Err(source), Ok(())) => {
                Err(MergeFault::Layer { digest: digest(), media_type: layer.media_type().to_string(), source })
            }
            (Ok(()), Ok(())) => Ok(()),
        }
    }

    fn read(
        &mut self,
        at: usize,
        layer: &Descriptor,
        blob: &mut BlobReader,
        control: &MergeControl,
    ) -> Result<(), LayerFault> {
        let decoded =
            compression::decode(Counted { blob, control }).map_err(|source| LayerFault::Compression { source })?;
        let bytes_max = layer.size().saturating_mul(RATIO_MAX).max(RATIO_FREE_BYTES);
        let image_bytes_max = EXPANDED_BYTES_MAX.saturating_sub(self.expanded_bytes);
        let mut expanded = Expanded { decoded, bytes: 0, bytes_max: bytes_max.min(image_bytes_max), control };
        let result = self.read_entries(at, &mut expanded).and_then(|()| {
            // Bytes after the archive's end count towards the limits too.
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
        let control = expanded.control;
        let mut archive = TarStream::new(expanded);
        while let Some(entry) = archive.next_entry().map_err(|source| LayerFault::Tar { source })? {
            let mut extent = Extent::default();
            if let TarKind::File { bytes } = entry.kind {
                // The archive omits the zeros of holes, but the image contains them, so they count as expanded bytes.
                archive
                    .reader()
                    .count(entry.hole_bytes)
                    .map_err(|source| LayerFault::Tar { source: read_fault(source) })?;
                extent = Extent { offset: self.spool.position(), bytes };
                self.spool_content(archive.content(), control)?;
            }
            self.tree.apply(at, &entry, extent).map_err(|source| LayerFault::Entry { source })?;
        }
        Ok(())
    }

    fn spool_content(&mut self, mut content: impl Read, control: &MergeControl) -> Result<(), LayerFault> {
        let mut buffer = [0; 16 * 1024];
        loop {
            // Within a hole, which can be long, no other reader is called that checks for a cancellation.
            control.check().map_err(|source| LayerFault::Tar { source: read_fault(source) })?;
            let read = match content.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(LayerFault::Tar { source: read_fault(error) }),
            };
            let bytes = buffer.get(..read).unwrap_or_default();
            self.spool.write_all(bytes).map_err(|source| LayerFault::Spool { source })?;
        }
    }
}

/// A reader of the layer before decompression; counts the bytes that have been read.
struct Counted<'a> {
    blob: &'a mut BlobReader,
    control: &'a MergeControl,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // A decoder keeps calling this function while the content expands to nothing, for example in a million empty
        // gzip members. Without this check, such a merge could not be cancelled.
        self.control.check()?;
        let read = self.blob.read(buffer)?;
        self.control.add_read(read);
        Ok(read)
    }
}

/// A reader of the layer after decompression. Fails above the limit of expanded bytes, or once the merge is cancelled.
struct Expanded<'a> {
    decoded: Box<dyn Read + 'a>,
    bytes: u64,
    bytes_max: u64,
    control: &'a MergeControl,
}

impl Read for Expanded<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.control.check()?;
        let read = self.decoded.read(buffer)?;
        self.count(read as u64)?;
        Ok(read)
    }
}

impl Expanded<'_> {
    fn count(&mut self, bytes: u64) -> io::Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes > self.bytes_max { Err(io::Error::other("the layer expands beyond its limit")) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use flate2::{Compression as Level, write::GzEncoder};
    use oci_spec::image::MediaType;
    use sha2::{Digest as _, Sha256};

    use super::*;
    use crate::merge::{compression::STREAM_BUFFER_BYTES, file_range::FileRange};

    #[test]
    fn faults_of_writing_are_not_faults_of_the_image() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let layer = |source| MergeFault::Layer { digest: "x".into(), media_type: "y".into(), source };
        for fault in [
            MergeFault::Spool { source: full() },
            MergeFault::Write { source: full() },
            layer(LayerFault::Spool { source: full() }),
        ] {
            assert!(fault.is_of_cache(), "{fault:?}");
        }
        assert!(!layer(LayerFault::Ratio).is_of_cache());
    }

    /// The blob expands to nothing, so without a cancellation the decoder would read the whole blob before returning.
    #[test]
    fn merge_of_empty_gzip_members_can_be_cancelled() {
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
        let control = MergeControl::default();
        let mut decoded = compression::decode(Counted { blob: &mut blob, control: &control }).unwrap();
        control.cancel();
        assert_eq!(decoded.read(&mut [0; 1]).unwrap_err().to_string(), "the merge was cancelled");
        drop(decoded);
        // Before the cancellation, the decoder read one buffer to parse the header.
        assert_eq!(control.read_bytes(), STREAM_BUFFER_BYTES as u64);
        blob.finish().unwrap();
    }
}
