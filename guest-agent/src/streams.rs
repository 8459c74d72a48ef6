// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The receiving and the sending half of a link's stream, which transfer whole messages.

use tokio::io::{ReadHalf, WriteHalf, split};
use waggle_link::{FrameReader, FrameWriter, Stream};

pub(crate) type Reader = FrameReader<ReadHalf<Stream>>;
pub(crate) type Writer = FrameWriter<WriteHalf<Stream>>;

/// Splits a stream. Rejects incoming frames of more than `frame_bytes_max` bytes.
pub(crate) fn halves(stream: Stream, frame_bytes_max: usize) -> (Reader, Writer) {
    let (read, write) = split(stream);
    (FrameReader::bounded(read, frame_bytes_max), FrameWriter::new(write))
}
