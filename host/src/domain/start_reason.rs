// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The reason why a machine did not start, for clients.
//!
//! The type holds only numbers, so its text never contains a path of the host, or text of an image or a registry. The
//! fault itself, which may contain them, is for the operator's log.

use waggle_shared::disk_reserve::LowDisk;

#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum StartReason {
    /// Less space is free than the reserve.
    #[error(transparent)]
    LowDisk(LowDisk),
    #[error("the server's disk is full")]
    FullDisk,
    #[error("the image does not exist on the server")]
    ImageMissing,
    #[error("the image is invalid, damaged or not supported")]
    ImageInvalid,
    #[error("the image is too large")]
    ImageTooLarge,
    #[error("the image's registry cannot be reached")]
    RegistryUnreachable,
    #[error("the image's registry denied the pull")]
    RegistryDenied,
    /// The registry of an image that a client has chosen, and that the operator does not name.
    #[error(
        "the image's registry cannot be reached at a public address; only images that the operator names in \
         WAGGLE_ALLOWED_IMAGES may come from others"
    )]
    RegistryNotPublic,
    #[error(
        "the image's registry denied the pull; only images that the operator names in WAGGLE_ALLOWED_IMAGES are pulled \
         with credentials"
    )]
    RegistryDeniedPublic,
    #[error("the image's registry does not have the image")]
    RegistryWithoutImage,
    #[error("the pull from the image's registry failed")]
    RegistryFailed,
    #[error("the machine was not ready within its boot timeout")]
    TimedOut,
    #[error("the machine ended before it was ready")]
    Ended,
    #[error("the start was cancelled")]
    Cancelled,
    #[error("the server failed to start a machine")]
    Other,
}
