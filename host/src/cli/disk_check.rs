// SPDX-FileCopyrightText: Copyright 2026 The waggle authors
// SPDX-License-Identifier: Apache-2.0
//! The check of `/readyz` for the free space of the server's disks.

use crate::{
    config::{Folders, Settings},
    http::Check,
};

/// The check fails if less than the reserve is free. It is not required, because environments that exist still work.
pub(super) fn check(settings: &Settings, folders: &Folders) -> Check {
    let (reserve, folders) = (settings.image_store.reserve(), [folders.data.clone(), folders.images.clone()]);
    let run = move || folders.iter().try_for_each(|folder| reserve.check(folder, 0)).map_err(|low| low.to_string());
    Check { name: "disk", is_required: false, run: Box::new(run) }
}
