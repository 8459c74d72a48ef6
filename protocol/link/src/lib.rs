// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The multiplexed link under the waggle protocol, over any byte stream: handshake, streams, framed messages.
//!
//! ```text
//!   carry                         a TCP connection as a flow of the egress link
//!   FrameReader / FrameWriter     messages, cancel-safe
//!   Stream                        one stream per call or flow
//!   State                         the streams of a link, with all data and frames that wait; every part is bounded
//!   driver                        the task that reads and writes the connection
//!   Records                       the data of one generation of the link
//!   vsock, virtio-serial port, Unix socket, pipe
//! ```
//!
//! **Frames.** A frame is a header of 8 bytes, and a body if it carries data. [`Opener`] opens streams, [`Acceptor`]
//! accepts them. Each side of a stream sends at most one `Open`, one `End` (no more data) and one `Close` (nothing more
//! at all). A close without an end is a reset. Data needs credit: each stream begins with a fixed credit, and the
//! receiver grants more as the data is read. So every frame either uses up something that this side has granted, or can
//! occur only once, and no peer can flood a link or make this side store more than it has granted.
//!
//! The host and the guest agent share this crate, so that its code exists only once. The crate does not know the
//! messages of calls and flows.
//!
//! # Example
//!
//! One call and its reply. The agent dials; after that the host opens streams:
//!
//! ```
//! use waggle_link::{Acceptor, FrameReader, FrameWriter, Opener, Past, answer, await_dial, dial};
//! use waggle_protocol::{Link, Reply, Request};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (host, guest) = tokio::io::duplex(4096);
//!
//! let agent = tokio::spawn(async move {
//!     let guest = dial(guest, Past::None, Link::Call).await.unwrap();
//!     let mut acceptor = Acceptor::start(guest, Link::Call);
//!     let (read, write) = tokio::io::split(acceptor.accept().await.unwrap());
//!     let request = FrameReader::new(read).receive::<Request>().await.unwrap();
//!     assert_eq!(request, Some(Request::SetClock { unix_ns: 1 }));
//!     let mut writer = FrameWriter::new(write);
//!     writer.send(&Reply::Done).await.unwrap();
//!     writer.finish().await.unwrap();
//!     acceptor.accept().await.unwrap_err() // serves until the host drops its end
//! });
//!
//! let host = answer(await_dial(host, Past::None).await?, Link::Call).await?;
//! let opener = Opener::start(host, Link::Call);
//! let (read, write) = tokio::io::split(opener.open().await?);
//! FrameWriter::new(write).send(&Request::SetClock { unix_ns: 1 }).await?;
//! let mut reader = FrameReader::new(read);
//! assert_eq!(reader.receive().await?, Some(Reply::Done));
//!
//! drop((reader, opener));
//! assert_eq!(agent.await?.to_string(), "peer closed the link");
//! # Ok(())
//! # }
//! ```

mod breach;
mod driver;
mod flow;
mod framed;
mod generation;
mod greet;
mod header;
mod limits;
mod records;
mod state;
mod stream;
mod window;

pub use breach::Breach;
pub use driver::{Acceptor, LinkFault, Opener};
pub use flow::{Ending, carry};
pub use framed::{FrameReader, FrameWriter, ReceiveFault, SendFault};
pub use generation::{Dialled, OpeningFault, Past, await_dial, begin};
pub use greet::{GreetFault, answer, dial};
pub use limits::EGRESS_POOL_BYTES;
pub use records::Records;
pub use stream::Stream;
