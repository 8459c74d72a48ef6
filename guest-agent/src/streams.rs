// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The two halves of a link's stream: one receives whole messages, and the other sends them.

use tokio::io::{ReadHalf, WriteHalf, split};
use waggle_link::{FrameReader, FrameWriter, Stream};

pub(crate) type Reader = FrameReader<ReadHalf<Stream>>;
pub(crate) type Writer = FrameWriter<WriteHalf<Stream>>;

/// Splits a stream. The reader rejects frames of more than `frame_bytes_max` bytes.
pub(crate) fn halves(stream: Stream, frame_bytes_max: usize) -> (Reader, Writer) {
    let (read, write) = split(stream);
    (FrameReader::bounded(read, frame_bytes_max), FrameWriter::new(write))
}
